// An explanation saved by lxt_fx (`to_json`), read without a server.
import { accountSentences } from "./gap";
import { type Account, type ExplainedNumber, type Packed, type Part, type Result, pack } from "./payload";
import { sentencesOf, shownAlone, wordsOf } from "./segments";

const SAVED = 1;
const PARTIAL = [", absolute relevance", ", for some of the places"]; // the sum of such relevance says nothing of the number
const SQUARES = 32; // the most squares across a picture whose relevance is by pixel

type Plain = Record<string, unknown>;
type Nested = number | Nested[];

function isSaved(found: unknown): found is Plain {
  return typeof found === "object" && found !== null && "relevance" in found && "further_parts" in found;
}

/** The explanations of a file of one or of several (`Explanations.to_json`); null for a file of something else. */
export function savedIn(found: unknown): Plain[] | null {
  if (isSaved(found)) return [found];
  const listed = (found as { explanations?: unknown } | null)?.explanations;
  return Array.isArray(listed) && listed.every(isSaved) ? listed : null;
}

/** A result of the page. Throws an Error that names what cannot be read. */
export async function readSaved(saved: Plain, name: string): Promise<Result> {
  if (saved["format"] !== SAVED) throw new Error(`${name} has format ${String(saved["format"])}, and this page reads ${SAVED}`);
  const [said, value, label] = ["explained", "value", "label"].map((key) => [saved[key]].flat());
  const numbers = said!.map((one, at): ExplainedNumber => {
    const number = { said: String(one), value: Number(value![at]), label: String(label![at]) };
    return PARTIAL.some((words) => number.said.includes(words)) ? { ...number, sentences: [] } : number;
  });
  const parts: Part[] = [];
  for (const part of [saved, ...(saved["further_parts"] as Plain[])]) parts.push(await readPart(part));
  const account = saved["account"] as Omit<Account, "sentences"> | null;
  const read: Account | null = account && { ...account, sentences: accountSentences(account, parts) };
  return {
    id: name,
    title: titleOf(parts) || (numbers.length === 1 ? numbers[0]!.label.trim() || numbers[0]!.said : name),
    kind: "explanation",
    model_class: String(saved["model_class"] ?? ""),
    checkpoint: String(saved["checkpoint"] ?? ""),
    rules: String(saved["rules"] ?? ""),
    versions: (saved["versions"] as Record<string, string>) ?? {},
    seconds: Number(saved["seconds"] ?? 0),
    numbers,
    parts,
    account: read,
  };
}

const TITLE = 60;

/** The beginning of the first text without its special tokens. */
function titleOf(parts: Part[]): string {
  const part = parts.find((one) => one.kind === "text");
  if (part?.kind !== "text") return "";
  const text = shownAlone(part.tokens).filter((_, at) => !part.special[at]).join("").replaceAll("↵", " ").replace(/\s+/g, " ").trim();
  return text.length > TITLE ? `${text.slice(0, TITLE - 1).trimEnd()}…` : text;
}

async function readPart(part: Plain): Promise<Part> {
  const name = String(part["part"]);
  const nested = part["relevance"] as Nested;
  const shape = (part["shape"] as number[] | undefined) ?? shapeOf(nested);
  const flat = [nested].flat(8) as number[];
  if (flat.some((one) => typeof one !== "number")) throw new Error(`the part "${name}" holds relevance that is no number`);
  const kind = part["kind"];
  const several = (part["axes"] as string[])[0] === "target";
  const base = { name, several, values: pack(flat, shape) };
  if (kind === "text") {
    const tokens = part["tokens"] as string[];
    const reading = {
      tokens,
      special: part["special"] as boolean[],
      segments: part["segments"] as number[],
      answer: Number(part["answer_tokens"] ?? 0),
    };
    const ids = part["input_ids"] as number[] | null;
    return { ...base, ...reading, kind: "text", ids, words: wordsOf(reading), sentences: sentencesOf(reading) };
  }
  if (kind === "image") return readImage(part, base.name, several, flat, shape);
  if (kind === "sound") {
    return { ...base, kind: "sound", step: Number(part["step"]), start: Number(part["start"]), loudness: null, spectrogram: null };
  }
  if (kind === "numbers") return { ...base, kind: "numbers", names: (part["names"] as string[]) ?? [] };
  throw new Error(`the part "${name}" is of the kind ${String(kind)}, which this page does not draw`);
}

function shapeOf(nested: Nested): number[] {
  return Array.isArray(nested) ? [nested.length, ...(nested.length ? shapeOf(nested[0]!) : [])] : [];
}

async function readImage(part: Plain, name: string, several: boolean, flat: number[], shape: number[]): Promise<Part> {
  const shown = part["shown"] as Packed;
  const [height, width] = shown.shape as [number, number];
  const side = Number(part["side"]);
  const [rows, columns] = shape.slice(-2) as [number, number];
  const wanted = Math.max(Number(part["patch"]), side, Math.ceil(Math.max(width, height) / SQUARES));
  const times = Math.max(1, Math.round(wanted / side));
  const [down, across] = [Math.ceil(rows / times), Math.ceil(columns / times)];
  const count = several ? shape[0]! : 1;
  const values = new Float64Array(count * down * across);
  for (let at = 0; at < flat.length; at++) {
    const [number, rest] = [Math.floor(at / (rows * columns)), at % (rows * columns)];
    const [row, column] = [Math.floor(rest / columns / times), Math.floor((rest % columns) / times)];
    values[(number * down + row) * across + column]! += flat[at]!;
  }
  const packed = pack(values, several ? [count, down, across] : [down, across]);
  const png = await picture(await inflated(shown.data), width, height);
  return { name, several, values: packed, kind: "image", png, width, height, patch: Number(part["patch"]), side: side * times };
}

async function inflated(base64: string): Promise<Uint8Array> {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function picture(bytes: Uint8Array, width: number, height: number): Promise<string> {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d")!;
  const image = context.createImageData(width, height);
  for (let at = 0; at < width * height; at++) {
    image.data.set([bytes[3 * at]!, bytes[3 * at + 1]!, bytes[3 * at + 2]!, 255], 4 * at);
  }
  context.putImageData(image, 0, 0);
  return canvas.toDataURL("image/png");
}
