// The answer matrix: each explained number against each token. Only what is in sight is drawn.
import { useEffect, useId, useMemo, useRef, useState } from "preact/hooks";
import { sized } from "./canvas";
import { cell, gradient } from "./colour";
import { type TextPart, numbersOf } from "./payload";
import { MARKED, scaled } from "./scale";
import type { Pane, ShownPart } from "./shown";
import { choose, coarse, ends, muted, theme } from "./state";
import { answers, countingTokens } from "./units";
import { amount, answerStart, counted, side, signed, tokenName } from "./words";

const WIDE = 20;
const TALL = 20;
const TOP = 96;
const RIGHT = 44; // for the last name of a column, which leans
const MOST_TALL = 460;

export function Matrix({ pane, shown }: { pane: Pane; shown: ShownPart }) {
  const title = useId();
  const part = shown.part as TextPart;
  const { result, chosen } = pane.view;
  const rows = result.numbers.length;
  const columns = part.tokens.length;
  const isAnswer = answers(part, rows);
  const [without, setWithout] = useState(isAnswer);
  const [at, setAt] = useState<[number, number] | null>(null);
  const [size, setSize] = useState(800);
  const scroller = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const side_ = size < 500 ? 84 : 132;
  const values = numbersOf(part.values);
  const found = useMemo(() => {
    const counts = new Array<boolean>(rows * columns).fill(false);
    let left = 0;
    for (let row = 0; row < rows; row++) {
      const read = isAnswer ? answerStart(part) + row : columns;
      const counting = countingTokens(part, isAnswer ? [row] : null, muted.value);
      for (let column = 0; column < columns; column++) {
        const place = row * columns + column;
        counts[place] = counting[column]! && !(without && column === read - 1);
        if (!counts[place] && column < read) left += values[place]!;
      }
    }
    return { counts, left, ...scaled(values, counts, ends.value) };
  }, [part, without, muted.value, ends.value]);

  const width = Math.min(size, side_ + columns * WIDE + RIGHT);
  const height = Math.min(MOST_TALL, TOP + rows * TALL);
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => setSize(Math.floor(entry!.contentRect.width)));
    watch.observe(scroller.current!.parentElement!);
    return () => watch.disconnect();
  }, []);

  const draw = () => {
    const box = scroller.current;
    if (box === null || canvas.current === null) return;
    const dark = theme.value === "dark";
    const context = sized(canvas.current, box.clientWidth, box.clientHeight);
    const [x, y] = [box.scrollLeft, box.scrollTop];
    const [firstColumn, firstRow] = [Math.floor(x / WIDE), Math.floor(y / TALL)];
    const lastColumn = Math.min(columns, Math.ceil((x + box.clientWidth - side_) / WIDE));
    const lastRow = Math.min(rows, Math.ceil((y + box.clientHeight - TOP) / TALL));
    const [ground, inkColour, faint] = dark ? ["#14171b", "#e4e8ed", "#9aa4b0"] : ["#ffffff", "#1b1f24", "#5b6470"];
    context.save();
    context.beginPath();
    context.rect(side_, TOP, box.clientWidth, box.clientHeight);
    context.clip();
    for (let row = firstRow; row < lastRow; row++) {
      const read = isAnswer ? answerStart(part) + row : columns;
      for (let column = firstColumn; column < Math.min(lastColumn, read); column++) {
        const place = row * columns + column;
        const [left, top] = [side_ + column * WIDE - x, TOP + row * TALL - y];
        if (found.counts[place]) {
          context.fillStyle = cell(theme.value, found.shares[place]!).background;
          context.fillRect(left, top, WIDE - 1, TALL - 1);
          if (found.beyond > 0 && Math.abs(values[place]!) > found.end) {
            context.strokeStyle = "#ffffffcc";
            context.strokeRect(left + 2.5, top + 2.5, WIDE - 6, TALL - 6);
          }
          if (found.shares[place]! <= -MARKED) {
            context.fillStyle = cell(theme.value, found.shares[place]!).ink;
            context.fillRect(left + 6, top + TALL / 2 - 1, WIDE - 13, 1.5);
          }
        } else hatch(context, left, top, dark);
        context.strokeStyle = dark ? "#ffffff14" : "#0000000f";
        context.strokeRect(left + 0.5, top + 0.5, WIDE - 2, TALL - 2);
      }
    }
    if (at !== null) {
      context.strokeStyle = inkColour;
      context.lineWidth = 2;
      context.strokeRect(side_ + at[1] * WIDE - x, TOP + at[0] * TALL - y, WIDE - 1, TALL - 1);
      context.lineWidth = 1;
    }
    context.restore();
    context.fillStyle = ground;
    context.fillRect(0, 0, box.clientWidth, TOP - 3);
    context.fillRect(0, 0, side_ - 3, box.clientHeight);
    context.textBaseline = "middle";
    context.save();
    context.beginPath();
    context.rect(side_ - 4, 0, box.clientWidth, TOP);
    context.clip();
    for (let column = firstColumn; column < lastColumn; column++) {
      context.save();
      context.translate(side_ + column * WIDE - x + WIDE / 2, TOP - 8);
      context.rotate(-Math.PI / 3);
      label(context, part.tokens[column]!, 12, at?.[1] === column, inkColour, faint);
      context.restore();
    }
    context.restore();
    context.save();
    context.beginPath();
    context.rect(0, TOP, side_, box.clientHeight);
    context.clip();
    context.textAlign = "right";
    for (let row = firstRow; row < lastRow; row++) {
      context.save();
      context.translate(side_ - 10, TOP + row * TALL - y + TALL / 2);
      const strong = at?.[0] === row || chosen.plus.includes(row);
      label(context, result.numbers[row]!.label || result.numbers[row]!.said, size < 500 ? 10 : 16, strong, inkColour, faint);
      context.restore();
    }
    context.restore();
  };
  useEffect(draw, [found, at, theme.value, width, height, chosen]);
  const frame = useRef(0);
  const scroll = () => {
    cancelAnimationFrame(frame.current);
    frame.current = requestAnimationFrame(draw);
  };

  const spot = (event: MouseEvent): [number, number] | null => {
    const box = scroller.current!;
    const edge = box.getBoundingClientRect();
    const column = Math.floor((event.clientX - edge.left - side_ + box.scrollLeft) / WIDE);
    const row = Math.floor((event.clientY - edge.top - TOP + box.scrollTop) / TALL);
    const inside = event.clientX - edge.left >= side_ && event.clientY - edge.top >= TOP;
    return inside && column >= 0 && column < columns && row >= 0 && row < rows ? [row, column] : null;
  };
  const pick = (row: number) => choose(result, { plus: [row], minus: [] });
  const key = (event: KeyboardEvent) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (event.key === "Enter" && at !== null) pick(at[0]);
    else if (event.key === "Escape") setAt(null);
    else if (step !== undefined) {
      const [row, column] = at ?? [0, -1];
      const to: [number, number] = [
        Math.max(0, Math.min(rows - 1, row + step[0]!)),
        Math.max(0, Math.min(columns - 1, column + step[1]!)),
      ];
      setAt(to);
      const box = scroller.current!;
      const [left, top] = [to[1] * WIDE, to[0] * TALL];
      box.scrollLeft = Math.min(left, Math.max(box.scrollLeft, left + WIDE - box.clientWidth + side_));
      box.scrollTop = Math.min(top, Math.max(box.scrollTop, top + TALL - box.clientHeight + TOP));
    } else return;
    event.preventDefault();
  };
  const value = at === null ? null : values[at[0] * columns + at[1]]!;
  const unread = at !== null && isAnswer && at[1] >= answerStart(part) + at[0];
  return (
    <section class="matrix" aria-labelledby={title}>
      <h2 id={title}>
        {isAnswer ? "The whole answer" : "All numbers"}{" "}
        <small>
          {counted(rows, isAnswer ? "answer token" : "number")} × {counted(columns, "token")}
        </small>
      </h2>
      <p class="said">
        A line for each explained number, a column for each token that it may come from.{" "}
        {coarse ? "Tap a cell" : "Click a cell, or press Enter on it,"} to see its line in the text.
      </p>
      <div class="matrix-frame" dir="ltr">
        <div
          ref={scroller}
          class="scroller"
          tabIndex={0}
          role="application"
          aria-roledescription="matrix"
          aria-label={`Relevance of ${rows} numbers and ${columns} tokens; arrow keys move`}
          aria-describedby={`${title}-at`}
          style={{ width: `${width}px`, height: `${height}px` }}
          onScroll={scroll}
          onPointerMove={(event) => setAt(spot(event))}
          onPointerLeave={() => setAt(null)}
          onClick={(event) => {
            const place = spot(event);
            setAt(place);
            if (place !== null) pick(place[0]);
          }}
          onKeyDown={key}
        >
          <canvas ref={canvas} aria-hidden="true" />
          <div class="space" style={{ width: `${side_ + columns * WIDE + RIGHT}px`, height: `${TOP + rows * TALL}px` }} />
        </div>
      </div>
      <p class="said readout" id={`${title}-at`} aria-live="polite">
        {at === null || value === null ? (
          coarse ? "Tap a cell to read it." : "Point at a cell to read it."
        ) : (
          <>
            “<bdi>{result.numbers[at[0]]!.label.trim() || result.numbers[at[0]]!.said}</bdi>” from “<bdi>{tokenName(part.tokens[at[1]]!)}</bdi>”:{" "}
            {unread ? (
              "comes later"
            ) : (
              <>
                <strong>{signed(value)}</strong> {side(value)}
              </>
            )}
          </>
        )}
      </p>
      <div class="legend">
        <div class="legend-bar" dir="ltr">
          <span class="sign against-word">against</span>
          <div class="bar" style={{ background: gradient(theme.value) }} role="img" aria-label="colours from blue, against, to red, for" />
          <span class="sign for-word">for</span>
          <div class="ticks" aria-hidden="true">
            <span>{ends.value === "rank" ? "strongest" : `−${amount(found.end)}`}</span>
            <span>0</span>
            <span>{ends.value === "rank" ? "strongest" : `+${amount(found.end)}`}</span>
          </div>
        </div>
        {isAnswer && (
          <label class="check">
            <input type="checkbox" checked={without} onChange={(event) => setWithout(event.currentTarget.checked)} />
            leave out the last token before each
          </label>
        )}
        <p class="said">
          {ends.value === "robust" &&
            `The scale ends at ${amount(found.end)}; ${found.beyond === 1 ? "1 cell goes" : `${counted(found.beyond, "cell")} go`} beyond it (with a double edge). `}
          {found.left !== 0 && `Hatched cells are left out of the colours, together ${signed(found.left)}.`}
        </p>
      </div>
    </section>
  );
}

function hatch(context: CanvasRenderingContext2D, left: number, top: number, dark: boolean): void {
  context.save();
  context.beginPath();
  context.rect(left, top, WIDE - 1, TALL - 1);
  context.clip();
  context.beginPath();
  for (let at = -TALL; at < WIDE; at += 5) {
    context.moveTo(left + at, top + TALL);
    context.lineTo(left + at + TALL, top);
  }
  context.strokeStyle = dark ? "#ffffff30" : "#00000028";
  context.stroke();
  context.restore();
}

function label(
  context: CanvasRenderingContext2D,
  text: string,
  most: number,
  strong: boolean,
  ink: string,
  faint: string,
): void {
  const letters = [...tokenName(text)];
  context.font = `${strong ? "600 " : ""}12px system-ui, sans-serif`;
  context.fillStyle = strong ? ink : faint;
  context.fillText(letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : letters.join(""), 0, 0);
}
