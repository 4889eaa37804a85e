import { beforeEach, expect, test, vi } from "vitest";
import { STEPS, curve, edgesAt, firstState, keptOf, layoutOf, neighbours, nodeTowards, stepOf } from "../src/circuit";
import { type Circuit, type CircuitNode, type Result, checkResult, pack } from "../src/payload";

const node = (id: string, kind: CircuitNode["kind"], row: number, column: number, short = id): CircuitNode => ({
  id, name: id, short, kind, row, column,
});

/** e0 -> h (by v), h -> logits, e1 -> m, m -> logits (weak), m -> dead, e0 -> shared heads a and b. */
function circuit(change: Partial<Circuit> = {}): Circuit {
  return {
    said: "logit", by: "token", columns: [" a", " b", " c"], instead: [" a", " x", " c"], rows: ["embedding", "0", "1", "logits"],
    nodes: [
      node("e@0", "embedding", 0, 0), node("h@2", "head", 1, 2, "0.5"), node("logits@2", "logits", 3, 2), node("e@1", "embedding", 0, 1),
      node("m@1", "mlp", 1, 1), node("dead@1", "head", 2, 1, "1.0"), node("a@2", "head", 2, 2, "1.1"), node("b@2", "head", 2, 2, "1.10"),
    ],
    source: [0, 1, 4, 3, 0, 4], targets: [[1], [2], [5], [4], [6, 7], [2]], through: ["v", "", "q", "", "k", ""],
    weights: pack([5, -4, 3, 2, 1, 0.5], [6]), total: 90, state: null, ...change,
  };
}

const state = (edges: number, pinned: string[] = []) => ({ edges, pinned, names: {} });
const names = (kept: { nodes: number[] }) => kept.nodes.map((at) => circuit().nodes[at]!.id);
const edgesOf = (kept: { lines: { edge: number }[] }) => kept.lines.map((line) => line.edge);

test("the slider goes from one edge to all, each step the same share more, and back", () => {
  expect([edgesAt(0, 4000), edgesAt(STEPS, 4000), edgesAt(STEPS / 2, 10_000)]).toEqual([1, 4000, 100]);
  for (const edges of [1, 60, 503, 4000]) expect(Math.abs(edgesAt(stepOf(edges, 4000), 4000) / edges - 1)).toBeLessThan(0.03);
  expect([edgesAt(7, 1), stepOf(1, 1), edgesAt(0, 0)]).toEqual([1, STEPS, 1]);
});

test("the strongest edges are kept, without those on no path from an embedding to the logits", () => {
  expect(edgesOf(keptOf(circuit(), state(3), false))).toEqual([0, 1, 2]);
  const kept = keptOf(circuit(), state(3), true);
  expect([edgesOf(kept), names(kept)]).toEqual([[0, 1], ["e@0", "h@2", "logits@2"]]);
  expect(edgesOf(keptOf(circuit(), state(1), true))).toEqual([]);
  expect(edgesOf(keptOf(circuit(), state(6), true))).toEqual([0, 1, 3, 5]);
  expect(edgesOf(keptOf(circuit(), state(6), false))).toEqual([0, 1, 2, 3, 4, 4, 5]);
});

test("pinned nodes stay, with the edges between them, whatever the slider says", () => {
  const kept = keptOf(circuit(), state(2, ["m@1", "dead@1"]), true);
  expect(names(kept)).toEqual(["e@0", "h@2", "logits@2", "m@1", "dead@1"]);
  expect(edgesOf(kept)).toEqual([0, 1, 2]);
  expect(edgesOf(keptOf(circuit(), state(6, ["m@1", "logits@2"]), true))).toEqual([0, 1, 3, 5]); // none of them twice
});

test("a node that is looked at comes into the picture with its edges to what is there", () => {
  const kept = keptOf(circuit(), state(2), true, 4);
  expect(names(kept)).toEqual(["e@0", "h@2", "logits@2", "m@1"]);
  expect(edgesOf(kept)).toEqual([0, 1, 5]);
  expect(edgesOf(keptOf(circuit(), state(2), true, 1))).toEqual([0, 1]);
});

test("neighbours are the strongest edges of the page on one side", () => {
  expect(neighbours(circuit(), 4, "out", 6)).toEqual([{ node: 5, edge: 2, weight: 3 }, { node: 2, edge: 5, weight: 0.5 }]);
  expect(neighbours(circuit(), 2, "into", 1)).toEqual([{ node: 1, edge: 1, weight: -4 }]);
  expect(neighbours(circuit(), 7, "into", 6).map(({ node }) => node)).toEqual([0]);
});

test("layers go upwards, an MLP stands above the heads of its layer, nodes of a cell side by side by their number", () => {
  const all = circuit().nodes.map((_, at) => at);
  const { places, across, width } = layoutOf(circuit(), all, 300);
  const [y, x] = [(at: number) => places.get(at)!.y, (at: number) => places.get(at)!.x];
  expect([across, width]).toEqual([100, 300]);
  expect(y(2)).toBeLessThan(y(6));
  expect(y(6)).toBeLessThan(y(1));
  expect(y(4)).toBeLessThan(y(1));
  expect(y(1)).toBeLessThan(y(0));
  expect(x(0)).toBe(50);
  expect(x(6)).toBeLessThan(x(7)); // 1.1 before 1.10
  expect(x(6) + x(7)).toBeCloseTo(500);
  expect(layoutOf(circuit({ nodes: [node("logits", "logits", 3, -1)] }), [0], 300).places.get(0)!.x).toBe(150);
  expect(layoutOf(circuit(), all, 10).width).toBeGreaterThan(100); // it scrolls
});

test("rows and columns stay where they are when fewer edges are shown", () => {
  const [many, few] = [layoutOf(circuit(), [0, 1, 2, 3, 4, 5, 6, 7], 300), layoutOf(circuit(), [0, 2], 300)];
  expect(few.places.get(0)).toEqual(many.places.get(0));
  expect([few.height, few.width]).toEqual([many.height, many.width]);
});

test("a column without a node in the page is narrow", () => {
  const nodes = circuit().nodes.filter((one) => one.column !== 1);
  const layout = layoutOf(circuit({ nodes }), [0, 1], 300);
  expect(layout.centres).toEqual([69, 150, 231]);
  expect([layout.width, layout.places.get(1)!.x]).toEqual([300, 231]);
});

test("arrow keys go to the next node in their direction, and stay where there is none", () => {
  const layout = layoutOf(circuit(), [0, 1, 2, 3, 4, 5, 6, 7], 300);
  expect(nodeTowards(layout, 0, "ArrowRight")).toBe(3);
  expect(nodeTowards(layout, 3, "ArrowUp")).toBe(4);
  expect(nodeTowards(layout, 4, "ArrowUp")).toBe(5);
  expect(nodeTowards(layout, 0, "ArrowLeft")).toBe(0);
  expect(nodeTowards(layout, 2, "ArrowUp")).toBe(2);
});

test("a line within its column bows to the side, and one to another column does not", () => {
  const layout = layoutOf(circuit(), [0, 1, 2, 3, 4, 5, 6, 7], 300);
  const at = (one: number, other: number) => curve(layout.places.get(one)!, layout.places.get(other)!, layout);
  const middle = (path: string) => path.split(/[MC ]/).filter(Boolean).map(Number);
  expect(middle(at(3, 5))[2]).toBeGreaterThan(middle(at(3, 5))[0]!);
  expect(middle(at(0, 2))[2]).toBe(middle(at(0, 2))[0]);
});

const result = (change: Partial<Circuit> = {}): Result => ({
  id: "r", title: "circuit", kind: "circuit", model_class: "", checkpoint: "", rules: "", versions: {}, seconds: 0,
  numbers: [], parts: [], circuit: circuit(change),
});

test("a circuit is checked before it is drawn", () => {
  expect(() => checkResult(result())).not.toThrow();
  expect(() => checkResult(result({ source: [0, 1, 4, 3, 0, 8] }))).toThrow("leads to no node");
  expect(() => checkResult(result({ targets: [[1]] }))).toThrow("as many targets");
  expect(() => checkResult(result({ weights: pack([1, 2, 3, 4, 5, NaN], [6]) }))).toThrow("no finite weight");
  expect(() => checkResult(result({ columns: [" a"] }))).toThrow("outside of its layers and columns");
  expect(() => checkResult(result({ state: { edges: 0, pinned: [], names: {} } }))).toThrow("pinned and named");
});

beforeEach(() => {
  vi.stubGlobal("matchMedia", () => ({ matches: false, addEventListener: () => undefined }));
  vi.stubGlobal("addEventListener", () => undefined);
});

test("what is pinned and named is the state of one result, and goes into its JSON", async () => {
  const { asShown, circuitState, setCircuit } = await import("../src/state");
  const [one, other] = [result(), { ...result(), id: "other" }];
  expect(circuitState(one)).toEqual(firstState(circuit()));
  setCircuit(one, { pinned: ["h@2"], names: { "h@2": "mover" } });
  setCircuit(one, { edges: 3 });
  expect(circuitState(one)).toEqual({ edges: 3, pinned: ["h@2"], names: { "h@2": "mover" } });
  expect(circuitState(other)!.pinned).toEqual([]);
  const again: Result = JSON.parse(JSON.stringify(asShown(one)));
  expect(() => checkResult(again)).not.toThrow();
  expect(circuitState({ ...again, id: "opened again" })).toEqual(circuitState(one));
  expect(circuitState({ ...one, circuit: null })).toBeNull();
});
