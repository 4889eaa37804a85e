// The page's data, format 1: what Python writes into the page and what the server answers with.

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
  accounts?: (Account | null)[] | null;
  notes?: string[];
  latent?: Latent | null;
  plain?: { text: string } | null;
  text?: string | null;
  tables?: Table[] | null;
  steered?: Steered[];
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

/** Throws an Error where the parts of a result and their numbers do not fit together. */
export function checkResult(result: Result): void {
  for (const part of result.parts ?? []) {
    const count = part.values.shape.reduce((a, b) => a * b, 1);
    const places = placeCount(part);
    const wanted = places * (part.several ? result.numbers.length : 1);
    if (count !== wanted || (part.kind === "text" && part.tokens.length !== places)) {
      throw new Error(`the part "${part.name}" of "${result.title}" has ${count} numbers where ${wanted} belong`);
    }
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
    const text = atob(packed.data);
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

/** Numbers as an array of the page. */
export function pack(values: ArrayLike<number>, shape: number[]): Packed {
  const bytes = new Uint8Array(4 * values.length);
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < values.length; at++) view.setFloat32(4 * at, values[at] ?? 0, true);
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return { shape, data: btoa(text) };
}
