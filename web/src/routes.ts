// The routes of relevance through the model: what layers, heads and units have at the tokens of a place.
import { type Chosen, combined } from "./chosen";
import { type Latent, type Span, type Unit, numbersOf } from "./payload";

export interface Grid {
  rows: number;
  columns: number;
  values: Float64Array;
}

/** Layers x positions of the residual stream. */
export function streamOf(latent: Latent, chosen: Chosen): Grid | null {
  if (latent.stream === null) return null;
  const [, rows, columns] = latent.stream.shape as [number, number, number];
  return { rows, columns, values: combined(latent.stream, chosen) };
}

/** Layers x heads at the tokens of a span, or over all tokens. */
export function headsOf(latent: Latent, chosen: Chosen, span: Span | null): Grid | null {
  if (latent.heads === null) return null;
  const [, layers, positions, heads] = latent.heads.values.shape as [number, number, number, number];
  const all = combined(latent.heads.values, chosen);
  const [start, stop] = span ?? [0, positions];
  const values = new Float64Array(layers * heads);
  for (let layer = 0; layer < layers; layer++) {
    for (let position = start; position < Math.min(stop, positions); position++) {
      for (let head = 0; head < heads; head++) {
        const value = all[(layer * positions + position) * heads + head]!;
        if (!Number.isNaN(value)) values[layer * heads + head]! += value; // a layer with fewer heads has NaN behind them
      }
    }
  }
  return { rows: layers, columns: heads, values };
}

interface ShownUnit {
  unit: Unit;
  /** Its relevance at the tokens of the span, or at all. */
  here: number;
}

function atSpan(unit: Unit, span: Span | null): number {
  if (span === null || unit.by_position === null) return unit.relevance;
  return numbersOf(unit.by_position).subarray(...span).reduce((a, b) => a + b, 0);
}

/** The units with the most relevance for the chosen numbers at the span, the most first: by linearity the sum and difference
 * of those of each number. The page has the strongest units of each number only: how many are known for some of the chosen
 * numbers and not for all, so that their sum is not, is counted in `unknown`. */
export function unitsOf(latent: Latent, chosen: Chosen, span: Span | null, most: number): { found: ShownUnit[]; unknown: number } {
  const signed = [...chosen.plus.map((at): [number, number] => [at, 1]), ...chosen.minus.map((at): [number, number] => [at, -1])];
  const alike = new Map<string, Map<number, Unit>>();
  for (const unit of latent.units ?? []) {
    if (!signed.some(([number]) => number === unit.number)) continue;
    const key = `${unit.place}/${unit.unit}`;
    alike.set(key, (alike.get(key) ?? new Map<number, Unit>()).set(unit.number, unit));
  }
  const found: ShownUnit[] = [];
  let unknown = 0;
  for (const units of alike.values()) {
    const each = signed.map(([number, sign]): [Unit | undefined, number] => [units.get(number), sign]);
    if (each.some(([unit]) => unit === undefined)) unknown++;
    else {
      const unit = each.length === 1 ? each[0]![0]! : { ...each[0]![0]!, activation: null };
      found.push({ unit, here: each.reduce((sum, [one, sign]) => sum + sign * atSpan(one!, span), 0) });
    }
  }
  const shown = found.filter(({ here }) => here !== 0).sort((a, b) => Math.abs(b.here) - Math.abs(a.here));
  return { found: shown.slice(0, most), unknown };
}

/** The sum of the columns that do not count, in the lowest and in the highest layer. A sum over layers would count the same
 * relevance many times. */
export function leftOutOf(grid: Grid, counts: boolean[]): [number, number] {
  const sum = (row: number) =>
    counts.reduce((total, does, column) => total + (does ? 0 : grid.values[row * grid.columns + column]!), 0);
  return [sum(0), sum(grid.rows - 1)];
}

/** Columns summed until at most so many are left, each with the range of columns that it holds. */
export function binned(grid: Grid, most: number): Grid & { size: number } {
  const size = Math.max(1, Math.ceil(grid.columns / most));
  const columns = Math.ceil(grid.columns / size);
  const values = new Float64Array(grid.rows * columns);
  for (let row = 0; row < grid.rows; row++) {
    for (let column = 0; column < grid.columns; column++) {
      values[row * columns + Math.floor(column / size)]! += grid.values[row * grid.columns + column]!;
    }
  }
  return { rows: grid.rows, columns, values, size };
}

/** The index of the largest absolute value. */
export function peak(values: ArrayLike<number>): number {
  let best = 0;
  for (let at = 1; at < values.length; at++) if (Math.abs(values[at]!) > Math.abs(values[best]!)) best = at;
  return best;
}
