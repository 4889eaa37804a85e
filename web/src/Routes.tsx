// The map of routes: layers x positions of the residual stream, under the text whose tokens are its columns.
import { useEffect, useId, useMemo, useRef, useState } from "preact/hooks";
import { frame, minusMarks, pixels, sized } from "./canvas";
import { binned, leftOutOf, peak, streamOf } from "./routes";
import { scaled } from "./scale";
import { type Pane, explainedIn, placeName } from "./shown";
import { ends, held, hold, muted, pointed, source, theme } from "./state";
import { countingTokens, firstUnread } from "./units";
import { amount, signed, side, tokenName } from "./words";

const LABELS = 104;
const LINE = 13;
const WIDEST = 40;
const LABELLED = 11; // pixels from which a column has the name of its token
const BELOW = 74;

export function Routes({ pane, paneAt }: { pane: Pane; paneAt: number }) {
  const title = useId();
  const latent = pane.view.result.latent;
  const canvas = useRef<HTMLCanvasElement>(null);
  const [width, setWidth] = useState(800);
  const [without, setWithout] = useState(true);
  const [at, setAt] = useState<[number, number] | null>(null);
  const room = useRef<HTMLDivElement>(null);
  const grid = useMemo(() => (latent ? streamOf(latent, pane.view.chosen) : null), [latent, pane.view.chosen]);
  useEffect(() => {
    if (room.current === null) return;
    const watch = new ResizeObserver(([entry]) => setWidth(Math.floor(entry!.contentRect.width)));
    watch.observe(room.current);
    return () => watch.disconnect();
  }, [grid === null]);
  const small = useMemo(() => (grid === null ? null : binned(grid, Math.max(20, Math.floor((width - LABELS) / 3)))), [grid, width]);
  const shownText = pane.parts[latent?.part ?? 0];
  const tokens = useMemo(() => {
    const part = shownText?.part;
    const left = { ...muted.value, last: muted.value.last || without };
    return part?.kind === "text" ? countingTokens(part, explainedIn(pane.view, part), left) : null;
  }, [pane, muted.value, without]);
  const unread = shownText?.part.kind === "text" ? firstUnread(shownText.part, explainedIn(pane.view, shownText.part)) : Infinity;
  /** Whether a column has a token that is not left out. */
  function counting(column: number): boolean {
    return tokens === null || tokens.slice(column * small!.size, (column + 1) * small!.size).some(Boolean);
  }
  const shares = useMemo(
    () => (small === null ? null : scaled(small.values, Array.from(small.values, (_, cell) => counting(cell % small.columns)), ends.value)),
    [small, ends.value, tokens],
  );
  const now = source.value;
  const span = now?.pane === paneAt && now.part === latent?.part ? (shownText?.spans[now.place] ?? null) : null;

  const across = small === null ? 0 : Math.min(WIDEST, (width - LABELS) / small.columns);
  const below = across >= LABELLED && small?.size === 1 ? BELOW : 0;
  useEffect(() => {
    if (small === null || shares === null || canvas.current === null) return;
    const height = small.rows * LINE;
    const context = sized(canvas.current, width, height + 2 + below);
    const dark = theme.value === "dark";
    context.imageSmoothingEnabled = false;
    const flipped = new Float64Array(shares.shares.length);
    for (let row = 0; row < small.rows; row++) {
      flipped.set(shares.shares.subarray(row * small.columns, (row + 1) * small.columns), (small.rows - 1 - row) * small.columns);
    }
    context.drawImage(pixels(flipped, small.rows, small.columns, theme.value), LABELS, 0, across * small.columns, height);
    minusMarks(context, flipped, small.columns, [LABELS, 0, across, LINE], theme.value);
    context.strokeStyle = dark ? "#ffffff22" : "#00000018";
    context.strokeRect(LABELS - 0.5, 0.5, across * small.columns + 1, height);
    if (across >= 8) {
      context.beginPath();
      for (let column = 1; column < small.columns; column++) {
        context.moveTo(LABELS + column * across, 0);
        context.lineTo(LABELS + column * across, height);
      }
      for (let row = 1; row < small.rows; row++) {
        context.moveTo(LABELS, row * LINE);
        context.lineTo(LABELS + across * small.columns, row * LINE);
      }
      context.strokeStyle = dark ? "#1d212655" : "#ffffff66";
      context.stroke();
    }
    context.fillStyle = dark ? "#9aa4b0" : "#5b6470";
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "right";
    context.textBaseline = "middle";
    const every = small.rows <= 16 ? 1 : Math.ceil(small.rows / 12);
    for (let row = 0; row < small.rows; row++) {
      if (row % every !== 0 && row !== small.rows - 1) continue;
      if (row !== small.rows - 1 && small.rows - 1 - row < every && every > 1) continue;
      context.fillText(shortened(latent!.layers[row] ?? "", 16), LABELS - 8, (small.rows - 1 - row + 0.5) * LINE);
    }
    context.textAlign = "right";
    for (let column = 0; column < small.columns; column++) {
      const left = LABELS + column * across;
      if (!counting(column) && column * small.size < unread) hatch(context, left, across, height, dark);
      if (below === 0) continue;
      const here = span !== null && column >= span[0] && column < span[1];
      context.save();
      context.fillStyle = here ? (dark ? "#ffffff" : "#111111") : dark ? "#9aa4b0" : "#5b6470";
      context.translate(left + across / 2 + 3, height + 9);
      context.rotate(-Math.PI / 3);
      const letters = [...tokenName(shownText?.part.kind === "text" ? shownText.part.tokens[column]! : "")];
      context.fillText(letters.length > 12 ? `${letters.slice(0, 11).join("")}…` : letters.join(""), 0, 0);
      context.restore();
    }
    if (span !== null) {
      const [start, stop] = [Math.floor(span[0] / small.size), Math.ceil(span[1] / small.size)];
      context.lineWidth = 1.5;
      context.strokeStyle = dark ? "#ffffff" : "#111111";
      context.strokeRect(LABELS + start * across, 0.75, Math.max(2, (stop - start) * across), height - 0.5);
    }
    if (at !== null) frame(context, [LABELS + at[1] * across, (small.rows - 1 - at[0]) * LINE, across, LINE], false);
  }, [small, shares, theme.value, span, width, below, at]);

  if (grid === null || small === null || latent == null) return null;
  const spot = (event: MouseEvent): [number, number] | null => {
    const box = canvas.current!.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - LABELS) / across);
    const row = small.rows - 1 - Math.floor((event.clientY - box.top) / LINE);
    return column >= 0 && column < small.columns && row >= 0 && row < small.rows ? [row, column] : null;
  };
  const placeOf = (column: number) => {
    const place = shownText?.spans.findIndex(([start, stop]) => column * small.size >= start && column * small.size < stop) ?? -1;
    return place < 0 ? null : { pane: paneAt, part: latent.part, place };
  };
  const go = (to: [number, number] | null) => {
    setAt(to);
    pointed.value = to === null ? null : placeOf(to[1]);
  };
  const start = (): [number, number] => {
    const best = peak(shares!.shares);
    return span === null ? [Math.floor(best / small.columns), best % small.columns] : [0, Math.floor(span[0] / small.size)];
  };
  /** Holds the token of a column, and releases the one that is held. */
  const pin = (column: number) => {
    const place = placeOf(column);
    if (place !== null) hold(place);
  };
  const key = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const [row, column] = at ?? start();
    const one = at === null ? 0 : 1; // the first arrow shows where one is
    const to = {
      ArrowRight: [row, column + one], ArrowLeft: [row, column - one], ArrowUp: [row + one, column], ArrowDown: [row - one, column],
      Home: [row, 0], End: [row, small.columns - 1], PageUp: [small.rows - 1, column], PageDown: [0, column],
    }[event.key];
    if (to !== undefined) {
      go([Math.max(0, Math.min(small.rows - 1, to[0]!)), Math.max(0, Math.min(small.columns - 1, to[1]!))]);
    } else if ((event.key === "Enter" || event.key === " ") && at !== null) pin(at[1]);
    else if (event.key === "Escape" && held.value !== null) held.value = null;
    else return;
    event.preventDefault();
  };
  const [fixed, place] = [held.value, at === null ? null : placeOf(at[1])];
  const isHeld = place !== null && fixed?.pane === paneAt && fixed.part === place.part && fixed.place === place.place;
  const columns = Array.from({ length: small.columns }, (_, column) => counting(column) || column * small.size >= unread);
  const left = columns.every(Boolean) ? null : leftOutOf(small, columns);
  const strongest = peak(grid.values);
  const [layer, position] = [Math.floor(strongest / grid.columns), strongest % grid.columns];
  const where = shownText?.spans.findIndex(([start, stop]) => position >= start && position < stop) ?? -1;
  const name = shownText && where >= 0 ? placeName(shownText, where) : `position ${position}`;
  return (
    <section class="routes" aria-labelledby={title}>
      <h2 id={title}>Routes through the layers</h2>
      <p class="lead">
        The relevance of the residual stream, from the input below to the output above. The most is at {latent.layers[layer]}, at “
        <bdi>{name}</bdi>”: {signed(grid.values[strongest]!)}.
      </p>
      <div ref={room} class="frame" dir="ltr">
        <canvas
          ref={canvas}
          tabIndex={0}
          role="application"
          aria-roledescription="heatmap"
          aria-label={`Relevance of ${grid.rows} layers at ${grid.columns} positions; arrow keys move, Enter holds the token, Escape releases it`}
          aria-describedby={`${title}-at`}
          onPointerMove={(event) => go(spot(event))}
          onPointerLeave={() => go(null)}
          onFocus={() => {
            if (canvas.current!.matches(":focus-visible")) go(at ?? start());
          }}
          onBlur={() => go(null)}
          onClick={(event) => {
            const found = spot(event);
            go(found);
            if (found !== null) pin(found[1]);
          }}
          onKeyDown={key}
        />
      </div>
      <p class="said readout" id={`${title}-at`} aria-live="polite">
        {at === null ? (
          <>
            Colours end at {amount(shares!.end)}
            {small.size > 1 ? `; each column is the sum of ${small.size} positions` : ""}.{" "}
            {left === null ? "" : `Hatched columns are left out of them, together ${signed(left[0])} in the lowest layer and ${signed(left[1])} in the highest.`}
          </>
        ) : (
          <>
            {latent.layers[at[0]]}, {columnName(at[1])}: <strong>{signed(small.values[at[0] * small.columns + at[1]]!)}</strong>{" "}
            {side(small.values[at[0] * small.columns + at[1]]!)}
            {isHeld && ", held"}
          </>
        )}
      </p>
      <label class="check">
        <input type="checkbox" checked={without} onChange={(event) => setWithout(event.currentTarget.checked)} />
        leave out the last token, from which the answer is read
      </label>
    </section>
  );

  function columnName(column: number) {
    const place = placeOf(column)?.place;
    return small!.size > 1 ? (
      `positions ${column * small!.size} to ${Math.min(grid!.columns, (column + 1) * small!.size) - 1}`
    ) : (
      <bdi>“{place === undefined || !shownText ? column : placeName(shownText, place)}”</bdi>
    );
  }
}

function hatch(context: CanvasRenderingContext2D, left: number, across: number, height: number, dark: boolean): void {
  context.save();
  context.beginPath();
  context.rect(left, 0, across, height);
  context.clip();
  context.beginPath();
  for (let at = -across; at < height; at += 6) {
    context.moveTo(left, at + across);
    context.lineTo(left + across, at);
  }
  context.strokeStyle = dark ? "#ffffff30" : "#00000028";
  context.stroke();
  context.restore();
}

function shortened(name: string, most: number): string {
  return name.length <= most ? name : `…${name.slice(1 - most)}`;
}
