// Tokens, words or sentences as the places of a text. The relevance of a word is the sum of its tokens'.
import type { Span, TextPart } from "./payload";
import { answerStart } from "./words";

export type UnitKind = "tokens" | "words" | "sentences";

/** The places of a text in a unit: ranges of tokens that cover it. */
export function spansOf(part: TextPart, unit: UnitKind): Span[] {
  if (unit === "tokens") return part.tokens.map((_, at): Span => [at, at + 1]);
  const found = unit === "words" ? part.words : part.sentences;
  return covers(found, part.tokens.length) ? found : spansOf(part, "tokens");
}

function covers(spans: Span[] | undefined, count: number): spans is Span[] {
  let at = 0;
  for (const [start, stop] of spans ?? []) {
    if (start !== at || stop <= start) return false;
    at = stop;
  }
  return at === count;
}

const PART = /^([\s\S]*)\((\d)\/(\d)\)$/;

/** The text of a span. Of a character that several tokens share (`🦙(1/2)`, `🦙(2/2)`) it has one. */
export function spanText(tokens: string[], [start, stop]: Span): string {
  if (stop === start + 1) return tokens[start]!;
  let found = "";
  for (let at = start; at < stop; ) {
    const part = PART.exec(tokens[at]!);
    const count = part !== null && part[2] === "1" ? Number(part[3]) : 1;
    const base = part?.[1] ?? "";
    const whole = count > 1 && at + count <= stop && tokens[at + count - 1] === `${base.trimStart()}(${count}/${count})`;
    found += whole ? base : tokens[at]!;
    at += whole ? count : 1;
  }
  return found;
}

export interface Muted {
  first: boolean;
  last: boolean;
  special: boolean;
}

/** Which tokens count for the colours: not those that are left out, nor those that come after all that is explained.
 * `explained` are the chosen numbers, where number i explains answer token i. The last token is that from which the last
 * of the explained tokens is read. */
export function countingTokens(part: TextPart, explained: number[] | null, muted: Muted): boolean[] {
  const count = part.tokens.length;
  const stop = firstUnread(part, explained);
  return part.tokens.map(
    (_, at) =>
      at < stop &&
      !(muted.first && at === 0) &&
      !(muted.last && at === Math.min(stop, count) - 1) &&
      !(muted.special && part.special[at]),
  );
}

/** The first token that the model had not read when it computed the last of the explained numbers. */
export function firstUnread(part: TextPart, explained: number[] | null): number {
  if (part.answer === 0 || explained === null || explained.length === 0) return part.read ?? part.tokens.length;
  return answerStart(part) + Math.max(...explained);
}

/** Whether number i explains answer token i of this part. */
export function answers(part: TextPart, numbers: number): boolean {
  return part.several && part.answer > 0 && part.answer === numbers;
}
