// Which of the explained numbers is looked at. Relevance is linear in them, so that of a sum or difference of numbers is the
// sum or difference of their relevance.
import { type Account, type Packed, type Part, type Result, numbersOf } from "./payload";

export interface Chosen {
  /** Numbers that are added. */
  plus: number[];
  /** Numbers that are taken away: the contrast. */
  minus: number[];
}

export const FIRST: Chosen = { plus: [0], minus: [] };

/** The signed numbers of a choice, [index, sign] each. */
function signed(chosen: Chosen): [number, number][] {
  return [...chosen.plus.map((at): [number, number] => [at, 1]), ...chosen.minus.map((at): [number, number] => [at, -1])];
}

/** Of an array whose first axis is the explained numbers, the sum over the chosen ones, in float64. */
export function combined(packed: Packed, chosen: Chosen): Float64Array {
  const all = numbersOf(packed);
  const size = packed.shape.slice(1).reduce((a, b) => a * b, 1);
  const found = new Float64Array(size);
  for (const [number, sign] of signed(chosen)) {
    const start = number * size;
    for (let at = 0; at < size; at++) found[at]! += sign * all[start + at]!;
  }
  return found;
}

/** The relevance of each place of a part for the chosen numbers. */
export function relevanceOf(part: Part, chosen: Chosen): Float64Array {
  return part.several ? combined(part.values, chosen) : Float64Array.from(numbersOf(part.values));
}

/** The value of the chosen numbers. */
export function valueOf(result: Result, chosen: Chosen): number {
  return signed(chosen).reduce((sum, [at, sign]) => sum + sign * (result.numbers[at]?.value ?? 0), 0);
}

/** The account of the chosen numbers, null where it is not known: the page has that of all numbers together. */
export function accountOf(result: Result, chosen: Chosen): Account | null {
  const whole = chosen.minus.length === 0 && chosen.plus.length === result.numbers.length;
  return whole ? (result.account ?? null) : null;
}
