// A text as coloured tokens. One tab stop; arrow keys move, Enter explains a token of the answer, in a live page the prediction
// at another token; Space holds a source.
import { Fragment, type VNode } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { type Theme, cell } from "./colour";
import type { TextPart } from "./payload";
import { type Pane, type ShownPart, explainedIn, found, isBeyond, numbersOfSpan } from "./shown";
import { canAskIn, explainAt, positionAt } from "./runs";
import { MARKED } from "./scale";
import { choose, clicks, held, hold, live, pinned, pointed, searched } from "./state";
import { firstUnread } from "./units";
import { answerStart, direction, spoken, tokenName } from "./words";

const LONG = 300; // places from which blocks that are out of sight are not laid out

interface Props {
  pane: Pane;
  paneAt: number;
  shown: ShownPart;
  theme: Theme;
}

export function TokenText({ pane, paneAt, shown, theme }: Props) {
  const part = shown.part as TextPart;
  const { result, chosen } = pane.view;
  const box = useRef<HTMLDivElement>(null);
  const active = useRef(0);
  const blocks = useMemo(() => blocksOf(shown, part), [shown]);
  const hits = useMemo(() => new Set(found(shown, searched.value)), [shown, searched.value]);
  const base = useMemo(() => direction(part.tokens.join("")) ?? "ltr", [part]);
  const unread = firstUnread(part, explainedIn(pane.view, part));

  const asks = live.value !== null && canAskIn(result, part) ? "; Enter explains what the model predicts there, Space holds the place" : "";

  const place = (at: number) => box.current?.querySelector<HTMLElement>(`[data-at="${at}"]`) ?? null;
  const stop = (at: number) => {
    place(active.current)?.setAttribute("tabindex", "-1");
    active.current = at;
    place(at)?.setAttribute("tabindex", "0");
  };
  useLayoutEffect(() => {
    box.current?.querySelectorAll('[tabindex="0"]').forEach((one) => one.setAttribute("tabindex", "-1"));
    stop(Math.min(active.current, shown.spans.length - 1));
  });
  useEffect(
    () =>
      held.subscribe((now) => {
        box.current?.querySelector(".held")?.classList.remove("held");
        if (now?.pane === paneAt && now.part === shown.index) place(now.place)?.classList.add("held");
      }),
    [shown, paneAt],
  );

  const at = (event: Event): number | null => {
    const token = (event.target as Element).closest<HTMLElement>("[data-at]");
    return token === null ? null : Number(token.dataset["at"]);
  };
  const point = (event: Event) => {
    const found = at(event);
    pointed.value = found === null ? null : { pane: paneAt, part: shown.index, place: found };
  };
  const leave = () => (pointed.value = null);
  const explains = (found: number) => numbersOfSpan(part, result.numbers.length, shown.spans[found]!);
  const holdAt = (found: number) => hold({ pane: paneAt, part: shown.index, place: found });
  /** Explains a token of the answer, or with `asks` what the model predicts there; else holds the token. */
  const act = (found: number, asks: boolean) => {
    const numbers = explains(found);
    if (numbers.length === 0) {
      const server = asks ? live.value : null;
      const position = server && positionAt(result, part, shown.spans[found]!);
      return server === null || position === null ? holdAt(found) : explainAt(server, result, position);
    }
    if (pinned.value !== null && paneAt === 0) pinned.value = { id: result.id, chosen: { plus: numbers, minus: [] } };
    else choose(result, { plus: numbers, minus: [] });
  };
  const click = (event: MouseEvent) => {
    const found = at(event);
    if (found === null) return;
    stop(found);
    if (event.shiftKey) holdAt(found);
    else act(found, clicks.value === "explain");
  };
  const key = (event: KeyboardEvent) => {
    const from = at(event);
    if (from === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = shown.spans.length - 1;
    const ahead = base === "rtl" ? -1 : 1;
    const moves: Record<string, () => number> = {
      ArrowRight: () => from + ahead,
      ArrowLeft: () => from - ahead,
      ArrowDown: () => beside(place, from, 1, last),
      ArrowUp: () => beside(place, from, -1, last),
      Home: () => 0,
      End: () => last,
    };
    const move = moves[event.key];
    if (move !== undefined) {
      const to = Math.max(0, Math.min(last, move()));
      stop(to);
      place(to)?.focus();
    } else if (event.key === "Enter") act(from, true);
    else if (event.key === " ") holdAt(from);
    else if (event.key === "Escape" && held.value !== null) held.value = null;
    else return;
    event.preventDefault();
  };

  const token = (found: number, opens: boolean): VNode => {
    const text = shown.texts[found]!;
    const [start, end] = shown.spans[found]!;
    const value = shown.values[found]!;
    const share = shown.scaled.shares[found]!;
    const numbers = explains(found);
    const isExplained = numbers.some((number) => chosen.plus.includes(number));
    const isContrast = numbers.some((number) => chosen.minus.includes(number));
    const later = start >= unread;
    const colours = later || !shown.counts[found] ? null : cell(theme, share);
    const beyond = isBeyond(shown, found);
    const marks = [
      "t",
      Math.abs(share) >= MARKED ? (share > 0 ? "for" : "against") : "",
      beyond ? "beyond" : "",
      !shown.counts[found] && !later ? "muted" : "",
      later ? "later" : "",
      numbers.length > 0 ? "answers" : "",
      isExplained ? "explained" : "",
      isContrast ? "contrasted" : "",
      hits.has(found) ? "hit" : "",
      part.special[start] && end === start + 1 ? "special" : "",
    ];
    const says = [
      tokenName(text),
      isExplained ? "explained" : isContrast ? "contrast" : later ? "comes later" : spoken(value),
      !shown.counts[found] && !later ? "left out of the colours" : "",
      numbers.length > 0 && !isExplained ? "press Enter to explain it" : "",
    ];
    const lead = /^ +(?=\S)/.exec(text)?.[0] ?? "";
    return (
      <Fragment key={found}>
        {opens && lead === " " ? "" : lead}
        <span
          class={marks.filter(Boolean).join(" ")}
          role="button"
          dir="auto"
          tabIndex={-1}
          data-at={found}
          aria-label={says.filter(Boolean).join(", ")}
          aria-pressed={numbers.length > 0 ? isExplained : undefined}
          style={colours ? { background: colours.background, color: colours.ink } : { background: "", color: "" }}
        >
          {visible(text.slice(lead.length))}
        </span>
      </Fragment>
    );
  };

  return (
    <div
      ref={box}
      class={`text${asks !== "" && clicks.value === "explain" ? " asks" : ""}`}
      dir={base}
      role="group"
      aria-label={`${part.name}: arrow keys move through its ${shown.spans.length} places${asks}`}
      onPointerOver={point}
      onPointerLeave={leave}
      onFocusIn={point}
      onFocusOut={leave}
      onClick={click}
      onKeyDown={key}
    >
      {blocks.map((block) => (
        <div
          key={block.places[0]}
          class={`block${block.answer ? " answer" : ""}${shown.spans.length > LONG ? " lazy" : ""}`}
          data-title={block.title}
        >
          {block.title && (
            <span class="block-title" dir="ltr">
              {block.title}
            </span>
          )}
          {runs(block.places, shown.texts, base).map((run) =>
            run.dir === base ? (
              run.places.map((at) => token(at, at === block.places[0]))
            ) : (
              <span class="run" dir={run.dir} key={`run${run.places[0]}`}>
                {run.places.map((at) => token(at, at === block.places[0]))}
              </span>
            ),
          )}
        </div>
      ))}
    </div>
  );
}

interface Block {
  places: number[];
  answer: boolean;
  title: string;
}

/** Paragraphs: the text is cut after line breaks, between the texts of a pair, and before the answer. */
function blocksOf({ spans, texts }: ShownPart, part: TextPart): Block[] {
  const first = answerStart(part);
  const pair = new Set(part.segments).size > 1;
  const found: Block[] = [];
  spans.forEach(([start], at) => {
    const answer = start >= first;
    const [last] = found.slice(-1);
    const segment = pair && at > 0 && part.segments[start] !== part.segments[spans[at - 1]![0]];
    const opens = last === undefined || answer !== last.answer || segment;
    if (opens || texts[at - 1]!.includes("↵")) {
      const title = !opens ? "" : answer ? "Answer" : pair ? `Text ${(part.segments[start] ?? 0) + 1}` : "";
      found.push({ places: [at], answer, title });
    } else last.places.push(at);
  });
  return found;
}

/** Runs of places that are read in one direction; what has none goes on with the run that it stands in. */
function runs(places: number[], texts: string[], base: "ltr" | "rtl"): { dir: "ltr" | "rtl"; places: number[] }[] {
  const found: { dir: "ltr" | "rtl"; places: number[] }[] = [];
  const directions = places.map((at) => direction(texts[at]!));
  places.forEach((at, index) => {
    const before = found[found.length - 1];
    let dir = directions[index];
    if (dir === null || dir === undefined) {
      const next = directions.slice(index + 1).find((one) => one !== null) ?? base;
      dir = before?.dir === next ? next : base;
    }
    if (before?.dir === dir) before.places.push(at);
    else found.push({ dir, places: [at] });
  });
  return found;
}

function visible(text: string): string {
  return text.trim() === "" ? text.replaceAll(" ", "␣") || "∅" : text;
}

/** The place in the next line that lies nearest below (or above) another. */
function beside(place: (at: number) => HTMLElement | null, from: number, step: 1 | -1, last: number): number {
  const here = place(from)?.getClientRects()[0];
  if (here === undefined) return from;
  const middle = here.left + here.width / 2;
  let best = from;
  let nearest = Infinity;
  let line: number | null = null;
  for (let at = from + step; at >= 0 && at <= last; at += step) {
    const box = place(at)?.getClientRects()[0];
    if (box === undefined || Math.abs(box.top - here.top) < box.height / 2) continue;
    line ??= box.top;
    if (Math.abs(box.top - line) > box.height / 2) break;
    const distance = Math.abs(box.left + box.width / 2 - middle);
    if (distance < nearest) [nearest, best] = [distance, at];
  }
  return best;
}
