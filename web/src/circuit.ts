// A circuit: which of its edges and nodes are in the picture, and where they stand.
import { type Circuit, numbersOf } from "./payload";

/** What a person made of a circuit. Nodes are called by their ids. */
export interface CircuitState {
  /** So many of the strongest edges are shown. */
  edges: number;
  pinned: string[];
  names: Record<string, string>;
}

/** An edge of the circuit from one node to one of its targets. */
export interface Line {
  edge: number;
  source: number;
  target: number;
}

export interface Kept {
  lines: Line[];
  /** The nodes in the picture, in the order of the circuit. */
  nodes: number[];
}

const FIRST_EDGES = 60;
export const STEPS = 200;

export function firstState(circuit: Circuit): CircuitState {
  return circuit.state ?? { edges: Math.min(FIRST_EDGES, circuit.source.length), pinned: [], names: {} };
}

/** The number of edges at a step of the slider: each step is the same share more. */
export function edgesAt(step: number, total: number): number {
  return Math.max(1, Math.min(total, Math.round(Math.exp((step / STEPS) * Math.log(Math.max(1, total))))));
}

/** The step of the slider for a number of edges. */
export function stepOf(edges: number, total: number): number {
  return total <= 1 ? STEPS : Math.round((STEPS * Math.log(Math.max(1, Math.min(edges, total)))) / Math.log(total));
}

function linesOf(circuit: Circuit, edge: number): Line[] {
  return circuit.targets[edge]!.map((target) => ({ edge, source: circuit.source[edge]!, target }));
}

/** Nodes that are reached from some over lines, with these. */
function reached(starts: Iterable<number>, lines: Line[], from: "source" | "target"): Set<number> {
  const next = new Map<number, number[]>();
  for (const line of lines) {
    const [here, there] = from === "source" ? [line.source, line.target] : [line.target, line.source];
    next.set(here, [...(next.get(here) ?? []), there]);
  }
  const found = new Set(starts);
  for (const node of found) for (const one of next.get(node) ?? []) found.add(one); // a Set that grows is gone through to its end
  return found;
}

/** The strongest edges without those that lie on no path from an embedding to the logits (as `CircuitScores.circuit` has
 * it), if `onPath`. Nodes that are pinned or `looked` at stay, with every edge between two of these, or from one to a node
 * of the picture where it is looked at. */
export function keptOf(circuit: Circuit, state: CircuitState, onPath: boolean, looked: number | null = null): Kept {
  const strongest = Array.from({ length: Math.min(state.edges, circuit.source.length) }, (_, edge) => linesOf(circuit, edge)).flat();
  const kinds = (kind: string) => circuit.nodes.flatMap((node, at) => (node.kind === kind ? [at] : []));
  const [from, to] = [reached(kinds("embedding"), strongest, "source"), reached(kinds("logits"), strongest, "target")];
  const isUsed = (line: Line) => !onPath || [line.source, line.target].every((node) => from.has(node) && to.has(node));
  const lines = strongest.filter(isUsed);
  const shown = new Set(lines.flatMap((line) => [line.source, line.target]));
  const pinned = new Set(circuit.nodes.flatMap((node, at) => (state.pinned.includes(node.id) ? [at] : [])));
  const known = new Set(lines.map((line) => `${line.edge}/${line.target}`));
  if (pinned.size > 0 || looked !== null) {
    for (let edge = 0; edge < circuit.source.length; edge++) {
      for (const line of linesOf(circuit, edge)) {
        const ends = [line.source, line.target];
        const isBetween = ends.every((node) => pinned.has(node) || node === looked);
        const isSeen = looked !== null && ends.includes(looked) && ends.every((node) => node === looked || shown.has(node));
        const isNew = !known.has(`${edge}/${line.target}`);
        if (isNew && (isBetween || (isSeen && !shown.has(looked!)))) lines.push(line);
      }
    }
  }
  for (const node of pinned) shown.add(node);
  if (looked !== null) shown.add(looked);
  return { lines, nodes: [...shown].sort((a, b) => a - b) };
}

export interface Neighbour {
  node: number;
  edge: number;
  weight: number;
}

/** The strongest edges of the page into a node, or out of it. */
export function neighbours(circuit: Circuit, node: number, side: "into" | "out", most: number): Neighbour[] {
  const weights = numbersOf(circuit.weights);
  const found: Neighbour[] = [];
  for (let edge = 0; edge < circuit.source.length && found.length < most; edge++) {
    for (const { source, target } of linesOf(circuit, edge)) {
      const [here, there] = side === "into" ? [target, source] : [source, target];
      if (here === node) found.push({ node: there, edge, weight: weights[edge]! });
    }
  }
  return found.slice(0, most);
}

export interface Place {
  x: number;
  y: number;
  /** Where its name has room: to the right (1), to the left (-1), nowhere (0). */
  side: -1 | 0 | 1;
}

export interface Layout {
  places: Map<number, Place>;
  /** The middle of each column. */
  centres: number[];
  across: number;
  down: number;
  width: number;
  height: number;
}

const [NARROWEST, NARROW, TALLEST, LOWEST, PICTURE, LABEL_ROOM] = [40, 24, 64, 25, 660, 36];

/** Where the nodes stand in this width: layers upwards, an MLP above the heads of its layer, and the nodes of one cell side
 * by side. Rows and columns stay where they are whatever is shown; a column without a node in the page is narrow. */
export function layoutOf(circuit: Circuit, nodes: number[], width: number): Layout {
  const isUsed = circuit.columns.map((_, at) => circuit.nodes.some((node) => node.column === at));
  const used = isUsed.some(Boolean) ? isUsed : isUsed.map(() => true);
  const empty = used.filter((one) => !one).length;
  const narrow = Math.min(NARROW, width / used.length);
  const across = Math.max(NARROWEST, (width - empty * narrow) / (used.length - empty));
  const centres: number[] = [];
  let end = 0;
  for (const one of used) {
    const room = one ? across : narrow;
    centres.push(end + room / 2);
    end += room;
  }
  const down = Math.max(LOWEST, Math.min(TALLEST, PICTURE / circuit.rows.length));
  const whole = { width: end, height: down * circuit.rows.length };
  const cells = new Map<string, number[]>();
  for (const at of nodes) {
    const { row, column, kind } = circuit.nodes[at]!;
    const key = `${row}/${column}/${kind === "mlp"}`;
    cells.set(key, [...(cells.get(key) ?? []), at]);
  }
  const places = new Map<number, Place>();
  for (const cell of cells.values()) {
    cell.sort((a, b) => inCell(circuit.nodes[a]!.short) - inCell(circuit.nodes[b]!.short));
    cell.forEach((at, index) => {
      const node = circuit.nodes[at]!;
      const middle = node.column < 0 ? whole.width / 2 : centres[node.column]!;
      const room = Math.min(38, (across * 0.86) / cell.length);
      const level = node.kind === "mlp" ? 0.24 : node.kind === "head" || node.kind === "features" ? 0.74 : 0.5;
      const y = (circuit.rows.length - 1 - node.row + level) * down;
      const side = room >= LABEL_ROOM || index === cell.length - 1 ? 1 : index === 0 ? -1 : 0;
      places.set(at, { x: middle + (index - (cell.length - 1) / 2) * room, y, side });
    });
  }
  return { places, centres, across, down, ...whole };
}

/** The index of a head or feature in its short name: 5 in `3.5`. */
function inCell(short: string): number {
  return Number(/(\d+)$/.exec(short)?.[1] ?? 0);
}

/** The node that is next in the direction of an arrow key; the same where there is none. */
export function nodeTowards(layout: Layout, from: number, key: string): number {
  const here = layout.places.get(from)!;
  const [right, down] = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[key] ?? [0, 0];
  let [best, least] = [from, Infinity];
  for (const [at, place] of layout.places) {
    const [x, y] = [place.x - here.x, place.y - here.y];
    const along = x * right! + y * down!;
    const aside = Math.abs(x * down!) + Math.abs(y * right!);
    if (at === from || along < 1) continue;
    const far = along + 3 * aside;
    if (far < least) [best, least] = [at, far];
  }
  return best;
}

/** The curve of a line. One that stays in its column bows to the side, the farther it goes. */
export function curve(from: Place, to: Place, layout: Layout): string {
  const bow = Math.abs(from.x - to.x) < layout.across * 0.6 ? Math.min(layout.across * 0.42, Math.abs(from.y - to.y) * 0.16) : 0;
  const middle = (from.y + to.y) / 2;
  const at = (value: number) => value.toFixed(1);
  return `M${at(from.x)} ${at(from.y)}C${at(from.x + bow)} ${at(middle)} ${at(to.x + bow)} ${at(middle)} ${at(to.x)} ${at(to.y)}`;
}
