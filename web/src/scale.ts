// Where the colours end. The same definition as lxt_fx/views/scaling.py; a test compares both.

export type Ends = "max" | "robust" | "rank";

export interface Scaled {
  /** A share of the full colour for each place, from -1 to 1; 0 for places that do not count. */
  shares: Float64Array;
  /** The relevance at which the colour ends. */
  end: number;
  /** How many of the counting places go beyond the end. */
  beyond: number;
  /** The largest absolute relevance of the counting places. */
  largest: number;
}

/** The share from which a sign is drawn as a line, a bar or a dot. */
export const MARKED = 0.12;

const QUANTILE = 0.99;
const LEAST = 0.1;
const FEWEST = 4;

/** The share of each place. `max`: the colour ends at the largest |relevance| of the places that count. `robust`: at the 99 %
 * quantile, but never below a tenth of the largest. `rank`: the share is the rank of |relevance| (ties share the average). */
export function scaled(values: ArrayLike<number>, counts: ArrayLike<boolean>, ends: Ends): Scaled {
  const sizes: number[] = [];
  for (let at = 0; at < values.length; at++) if (counts[at]) sizes.push(Math.abs(values[at]!));
  const sorted = Float64Array.from(sizes).sort();
  const largest = sorted[sorted.length - 1] ?? 0;
  const end = ends === "robust" ? robustEnd(sorted, largest) : largest;
  const shares = new Float64Array(values.length);
  let beyond = 0;
  const rank = ends === "rank" ? ranks(sorted) : null;
  for (let at = 0; at < values.length; at++) {
    if (!counts[at]) continue;
    const value = values[at]!;
    const size = Math.abs(value);
    if (rank !== null) shares[at] = Math.sign(value) * (rank.get(size) ?? 0);
    else if (end > 0) shares[at] = Math.min(1, Math.max(-1, value / end));
    if (rank === null && size > end) beyond++;
  }
  return { shares, end, beyond, largest };
}

function robustEnd(sorted: Float64Array, largest: number): number {
  const quantile = sorted[Math.floor(QUANTILE * (sorted.length - 1))] ?? 0;
  if (sorted.length < FEWEST || quantile === 0) return largest;
  return Math.max(quantile, LEAST * largest);
}

/** The rank of each size among the sorted ones, divided by their count; ties have the average of their ranks. */
function ranks(sorted: Float64Array): Map<number, number> {
  const found = new Map<number, number>();
  for (let start = 0; start < sorted.length; ) {
    let stop = start;
    while (stop < sorted.length && sorted[stop] === sorted[start]) stop++;
    found.set(sorted[start]!, (start + 1 + stop) / 2 / sorted.length);
    start = stop;
  }
  return found;
}
