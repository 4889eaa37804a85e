// The page's data, format 1: what Python writes into the page and what the server answers with.

import type { CircuitState } from "./circuit";

export interface Packed {
  shape: number[];
  data: string;
}

export interface ExplainedNumber {
  said: string;
  label: string;
  value: number;
  /** Why the relevance does not sum to the value. */
  sentences?: string[];
}

interface PartBase {
  name: string;
  several: boolean;
  values: Packed;
}

export type Span = [number, number];

export interface TextPart extends PartBase {
  kind: "text";
  tokens: string[];
  ids: number[] | null;
  special: boolean[];
  segments: number[];
  answer: number;
  words: Span[];
  sentences: Span[];
  /** How many tokens there are up to the position that a question named, where none behind it has relevance. */
  read?: number;
}

export interface ImagePart extends PartBase {
  kind: "image";
  png: string;
  width: number;
  height: number;
  patch: number;
  side: number;
}

export interface SoundPart extends PartBase {
  kind: "sound";
  step: number;
  start: number;
  loudness: Packed | null;
  spectrogram: string | null;
  /** How long the spectrogram is, which may be shorter than all steps. Without it there is no saying where it belongs. */
  seconds?: number | null;
}

export interface NumbersPart extends PartBase {
  kind: "numbers";
  names: string[];
  /** How many weaker numbers are not in the page. */
  left_out?: number;
}

export type Part = TextPart | ImagePart | SoundPart | NumbersPart;

export interface Account {
  value: number;
  reached: Record<string, number>;
  took: Record<string, number>;
  residual: number;
  sentences: string[];
}

export interface Unit {
  number: number;
  place: string;
  unit: number;
  relevance: number;
  activation: number | null;
  label: string | null;
  by_position: Packed | null;
  samples?: string[];
}

export interface Latent {
  part: number;
  layers: string[];
  stream: Packed | null;
  heads: { places: string[]; values: Packed } | null;
  units: Unit[];
}

export interface Table {
  title: string;
  columns: string[];
  rows: (string | number | boolean | null)[][];
}

/** What was changed inside the model: units (null: all) of a place, multiplied or set. */
export interface Steered {
  place: string;
  units: number[] | null;
  scale?: number;
  value?: number;
}

export interface CircuitNode {
  /** `attention.3.heads:5@7` (at a token), or `attention.3.heads:5`. */
  id: string;
  name: string;
  short: string;
  kind: "embedding" | "head" | "mlp" | "logits" | "features" | "other";
  row: number;
  /** -1: in the middle of its row. */
  column: number;
}

/** Parts of a network and the strongest edges between them, the strongest first. */
export interface Circuit {
  /** Which number is explained, and what it is in both runs. */
  said: string;
  by: "token" | "part";
  columns: string[];
  /** The tokens of the corrupted text. */
  instead: string[] | null;
  rows: string[];
  nodes: CircuitNode[];
  source: number[];
  /** Several where heads share keys and values. */
  targets: number[][];
  /** q, k or v of a head. */
  through: string[];
  weights: Packed;
  /** How many edges there are in all. */
  total: number;
  state: CircuitState | null;
}

export interface Result {
  id: string;
  title: string;
  kind: string;
  model_class: string;
  checkpoint: string;
  rules: string;
  versions: Record<string, string>;
  seconds: number;
  numbers: ExplainedNumber[];
  parts: Part[];
  /** Of the only number; of several numbers, that of their sum. */
  account?: Account | null;
  notes?: string[];
  latent?: Latent | null;
  text?: string | null;
  tables?: Table[] | null;
  steered?: Steered[];
  circuit?: Circuit | null;
}

export interface Live {
  model: string;
  tables: { name: string; summary: string }[];
  asks: string[];
  address: string;
  limits: { characters: number; answer_tokens?: number; picture?: number };
}

export interface Page {
  format: number;
  made_by: string;
  results: Result[];
  live: Live | null;
}

export const FORMAT = 1;

/** The page's data, checked as far as the page would fail without it. Throws an Error that says what is wrong. */
export function readPage(found: unknown): Page {
  const page = found as Partial<Page> | null;
  if (page === null || typeof page !== "object" || !Array.isArray(page.results)) {
    throw new Error("this is no page of lxt_fx: it has no list of results");
  }
  if (page.format !== FORMAT) {
    throw new Error(`the data has format ${String(page.format)}, and this page reads ${FORMAT}; write the page again`);
  }
  page.results.forEach(checkResult);
  return { format: FORMAT, made_by: page.made_by ?? "lxt_fx", results: page.results, live: page.live ?? null };
}

/** Throws an Error where the parts of a result and their numbers do not fit together, or something that is drawn is missing. */
export function checkResult(result: Result): void {
  const fail = (why: string): never => {
    throw new Error(`"${String(result?.title ?? "a result")}" cannot be shown: ${why}`);
  };
  for (const key of ["numbers", "parts", "notes", "tables"] as const) {
    if (!Array.isArray(result?.[key] ?? [])) fail(`its ${key} are no list`);
  }
  const numbers = result?.numbers?.length ?? 0;
  if (!result?.parts?.length && !result?.tables?.length && !result?.text && !result?.circuit) fail("it holds nothing to show");
  if (result.parts?.length && !numbers) fail("it has no explained number");
  for (const number of result.numbers ?? []) if (!Number.isFinite(number?.value)) fail("an explained number has no value");
  if (result.account && typeof result.account.sentences?.[0] !== "string") fail("its account has no sentences");
  for (const part of result.parts ?? []) checkPart(part, numbers, fail);
  for (const table of result.tables ?? []) if (!Array.isArray(table.columns) || !Array.isArray(table.rows)) fail("a table has no columns or rows");
  if (result.circuit) checkCircuit(result.circuit, fail);
  const latent = result.latent;
  if (latent && (result.parts?.[latent.part]?.kind !== "text" || !Array.isArray(latent.layers) || !Array.isArray(latent.units))) {
    fail("what is inside the model has no text, layers or units");
  }
}

function checkCircuit(circuit: Circuit, fail: (why: string) => never): void {
  for (const key of ["columns", "rows", "nodes", "source", "targets", "through"] as const) {
    if (!Array.isArray(circuit[key])) fail(`its circuit has no ${key}`);
  }
  const [edges, nodes] = [circuit.source.length, circuit.nodes.length];
  const isNode = (at: number) => Number.isInteger(at) && at >= 0 && at < nodes;
  if (circuit.targets.length !== edges || circuit.through.length !== edges || circuit.weights?.shape[0] !== edges) {
    fail("its circuit does not have as many targets and weights as edges");
  }
  if (!circuit.source.every(isNode) || !circuit.targets.every((each) => each.every(isNode))) fail("an edge of its circuit leads to no node");
  if (!numbersOf(circuit.weights).every(Number.isFinite)) fail("an edge of its circuit has no finite weight");
  const state = circuit.state;
  if (state && !(state.edges >= 1 && Array.isArray(state.pinned) && Object.values(state.names ?? 0).every((name) => typeof name === "string"))) {
    fail("what was pinned and named in its circuit is damaged");
  }
  const inside = ({ row, column }: CircuitNode) => row >= 0 && row < circuit.rows.length && column >= -1 && column < circuit.columns.length;
  if (!circuit.nodes.every(inside)) fail("a node of its circuit stands outside of its layers and columns");
}

function checkPart(part: Part, numbers: number, fail: (why: string) => never): void {
  const named = `the part "${String(part?.name)}"`;
  if (!Array.isArray(part?.values?.shape) || typeof part.values.data !== "string") fail(`${named} has no numbers`);
  const values = numbersOf(part.values);
  const places = placeCount(part);
  if (!values.every(Number.isFinite)) fail(`${named} has a number that is NaN or infinite`);
  if (part.several && part.values.shape[0] !== numbers) fail(`${named} has ${part.values.shape[0]} explained numbers, and there are ${numbers}`);
  if (part.kind === "image" && !/^data:image\/png;base64,/.test(part.png)) fail(`${named} has no PNG`);
  if (part.kind !== "text") return;
  const strings = Array.isArray(part.tokens) && part.tokens.every((token) => typeof token === "string");
  if (!strings || part.tokens.length !== places) fail(`${named} has ${places} places, and not as many tokens`);
  for (const each of [part.special, part.segments]) if (!Array.isArray(each) || each.length !== places) fail(`${named} does not say of each token what it is`);
  if (!(part.read === undefined || (part.read >= 0 && part.read <= places))) fail(`${named} was read beyond its end`);
  for (const [start, end] of [...part.words, ...part.sentences]) {
    if (!(start >= 0 && start < end && end <= places)) fail(`${named} has a word or sentence outside of its tokens`);
  }
}

/** How many places a part has: tokens, squares of a picture, steps of a sound. */
export function placeCount(part: Part): number {
  const shape = part.several ? part.values.shape.slice(1) : part.values.shape;
  return shape.reduce((a, b) => a * b, 1);
}

const unpacked = new WeakMap<Packed, Float32Array>();

/** The numbers of an array, row by row. */
export function numbersOf(packed: Packed): Float32Array {
  let found = unpacked.get(packed);
  if (found === undefined) {
    const text = decoded(packed.data);
    const bytes = new Uint8Array(text.length);
    for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
    const view = new DataView(bytes.buffer);
    const count = packed.shape.reduce((a, b) => a * b, 1);
    if (bytes.length !== 4 * count) {
      throw new Error(`an array of shape [${packed.shape.join(", ")}] has ${bytes.length} bytes where ${4 * count} belong`);
    }
    found = new Float32Array(count);
    for (let at = 0; at < count; at++) found[at] = view.getFloat32(4 * at, true);
    unpacked.set(packed, found);
  }
  return found;
}

function decoded(base64: string): string {
  try {
    return atob(base64);
  } catch {
    throw new Error("an array is no base64");
  }
}

/** Numbers as an array of the page. */
export function pack(values: ArrayLike<number>, shape: number[]): Packed {
  const bytes = new Uint8Array(4 * values.length);
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < values.length; at++) view.setFloat32(4 * at, values[at] ?? 0, true);
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return { shape, data: btoa(text) };
}
