// What is on the page: one or two results, each with its parts, on one scale.
import { type Chosen, accountOf, relevanceOf, valueOf } from "./chosen";
import { type Account, type Part, type Result, type Span, type TextPart, placeCount } from "./payload";
import { type Ends, type Scaled, scaled } from "./scale";
import { type Muted, type UnitKind, answers, countingTokens, firstUnread, spanText, spansOf } from "./units";
import { answerStart } from "./words";

/** A result with the numbers that are explained in it. */
export interface View {
  result: Result;
  chosen: Chosen;
}

export interface ShownPart {
  part: Part;
  index: number;
  /** The places of a text as ranges of tokens, of a sound as ranges of steps. */
  spans: Span[];
  /** What each place of a text says. */
  texts: string[];
  values: Float64Array;
  counts: boolean[];
  scaled: Scaled;
  sum: number;
  /** The relevance of the places that are left out, and how many they are. */
  leftOut: number;
  leftOutCount: number;
}

export interface Pane {
  view: View;
  parts: ShownPart[];
  value: number;
  sum: number;
  account: Account | null;
}

export interface Choices {
  unit: UnitKind;
  muted: Muted;
  ends: Ends;
  /** One scale for parts of all kinds. */
  together: boolean;
}

/** Panes for views, on one scale: parts of one kind share it, and all parts do where `together` is chosen. */
export function panesOf(views: View[], choices: Choices): Pane[] {
  const panes = views.map((view) => pane(view, choices));
  const groups = new Map<string, ShownPart[]>();
  for (const part of panes.flatMap((one) => one.parts)) {
    const key = choices.together ? "all" : part.part.kind;
    groups.set(key, [...(groups.get(key) ?? []), part]);
  }
  for (const parts of groups.values()) scaleTogether(parts, choices.ends);
  return panes;
}

function scaleTogether(parts: ShownPart[], ends: Ends): void {
  const found = scaled(
    parts.flatMap((part) => [...part.values]),
    parts.flatMap((part) => part.counts),
    ends,
  );
  let start = 0;
  for (const part of parts) {
    const shares = found.shares.slice(start, start + part.values.length);
    part.scaled = { ...found, shares };
    start += part.values.length;
  }
}

function pane(view: View, choices: Choices): Pane {
  const parts = (view.result.parts ?? []).map((part, index) => shownPart(view, part, index, choices));
  return {
    view,
    parts,
    value: valueOf(view.result, view.chosen),
    sum: parts.reduce((sum, part) => sum + part.sum, 0),
    account: accountOf(view.result, view.chosen),
  };
}

const UNSCALED: Scaled = { shares: new Float64Array(0), end: 0, beyond: 0, largest: 0 };

const BARS = 300; // as many bars of a sound can be told apart

/** Steps of a sound, as many together as make at most so many bars. */
function joined(steps: number): Span[] {
  const size = Math.max(1, Math.ceil(steps / BARS));
  return Array.from({ length: Math.ceil(steps / size) }, (_, at): Span => [at * size, Math.min(steps, (at + 1) * size)]);
}

/** The chosen numbers where they explain the answer in this text; null where all of the text was read. */
export function explainedIn({ result, chosen }: View, part: TextPart): number[] | null {
  return answers(part, result.numbers.length) ? [...chosen.plus, ...chosen.minus] : null;
}

function shownPart({ result, chosen }: View, part: Part, index: number, choices: Choices): ShownPart {
  const relevance = relevanceOf(part, chosen);
  const sum = relevance.reduce((a, b) => a + b, 0);
  if (part.kind !== "text") {
    const steps = part.kind === "sound" ? joined(placeCount(part)) : [];
    const values = part.kind === "sound" ? Float64Array.from(steps, (span) => relevance.subarray(...span).reduce((a, b) => a + b, 0)) : relevance;
    const counts = new Array<boolean>(values.length).fill(true);
    return { part, index, spans: steps, texts: [], values, counts, scaled: UNSCALED, sum, leftOut: 0, leftOutCount: 0 };
  }
  const explained = explainedIn({ result, chosen }, part);
  const tokens = countingTokens(part, explained, choices.muted);
  const spans = spansOf(part, choices.unit);
  const stop = firstUnread(part, explained);
  const values = new Float64Array(spans.length);
  const counts = spans.map(([start, end], at) => {
    const some = tokens.slice(start, end).some(Boolean);
    for (let token = start; token < end; token++) if (tokens[token] || !some) values[at]! += relevance[token]!;
    return some;
  });
  let [leftOut, leftOutCount] = [0, 0];
  tokens.forEach((counting, token) => {
    if (!counting && token < stop) [leftOut, leftOutCount] = [leftOut + relevance[token]!, leftOutCount + 1];
  });
  const texts = spans.map((span) => spanText(part.tokens, span));
  return { part, index, spans, texts, values, counts, scaled: UNSCALED, sum, leftOut, leftOutCount };
}

/** Whether a place goes beyond the end of the scale. */
export function isBeyond(part: ShownPart, at: number): boolean {
  return part.scaled.beyond > 0 && part.counts[at]! && Math.abs(part.values[at]!) > part.scaled.end;
}

/** The strongest places of a pane that count, the strongest first, as [part, place] in `parts`. */
export function strongest(pane: Pane, most: number): [ShownPart, number][] {
  const found = pane.parts.flatMap((part) =>
    Array.from(part.values, (_, at): [ShownPart, number] => [part, at]).filter(([, at]) => part.counts[at] && part.values[at] !== 0),
  );
  found.sort(([a, i], [b, j]) => Math.abs(b.values[j]!) - Math.abs(a.values[i]!));
  return found.slice(0, most);
}

/** How a place is called: a token, "row 3, column 5", "0.4 s", a name. */
export function placeName({ part, spans, texts }: ShownPart, at: number): string {
  if (part.kind === "text") return (texts[at] ?? "").replaceAll("↵", " ").trim() || (texts[at]?.includes("↵") ? "line break" : "space");
  if (part.kind === "sound") return `${(part.start + spans[at]![0] * part.step).toFixed(2)} s`;
  if (part.kind === "numbers") return part.names[at] ?? `number ${at}`;
  const columns = imageShape(part)[1];
  return `row ${Math.floor(at / columns) + 1}, column ${(at % columns) + 1}`;
}

/** Rows and columns of the squares of a picture. */
export function imageShape(part: Part): [number, number] {
  const shape = part.several ? part.values.shape.slice(1) : part.values.shape;
  return [shape[0] ?? 1, shape[1] ?? 1];
}

/** Whether a text's tokens are answers that can be chosen, and the number of a span of them. */
export function numbersOfSpan(part: TextPart, numbers: number, [start, end]: Span): number[] {
  const first = answerStart(part);
  if (!answers(part, numbers) || start < first) return [];
  return Array.from({ length: end - start }, (_, at) => start - first + at);
}

/** Places of a text whose words hold what is searched for. */
export function found(part: ShownPart, searched: string): number[] {
  const wanted = searched.trim().toLocaleLowerCase();
  if (wanted === "" || part.part.kind !== "text") return [];
  let text = "";
  const starts = part.texts.map((token) => {
    const start = text.length;
    text += token.toLocaleLowerCase();
    return start;
  });
  const places = new Set<number>();
  for (let hit = text.indexOf(wanted); hit >= 0; hit = text.indexOf(wanted, hit + wanted.length)) {
    let at = upper(starts, hit) - 1;
    for (; at < starts.length && starts[at]! < hit + wanted.length; at++) places.add(at);
  }
  return [...places];
}

/** The first index whose start is beyond a position. */
function upper(starts: number[], position: number): number {
  let [low, high] = [0, starts.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (starts[middle]! <= position) low = middle + 1;
    else high = middle;
  }
  return low;
}
