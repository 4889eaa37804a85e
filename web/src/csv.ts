// The relevance of every place as comma-separated values (RFC 4180).
import { type Pane, type ShownPart, imageShape } from "./shown";

const COLUMNS = ["part", "place", "name", "relevance", "counts"];

/** A line for each place of the pane, in the units that are shown. */
export function csv(pane: Pane): string {
  const lines = [COLUMNS.join(",")];
  for (const part of pane.parts) {
    part.values.forEach((value, at) => {
      lines.push([part.part.name, String(at), nameOf(part, at), String(value), part.counts[at] ? "1" : "0"].map(field).join(","));
    });
  }
  return lines.join("\r\n") + "\r\n";
}

function nameOf({ part, spans, texts }: ShownPart, at: number): string {
  if (part.kind === "text") return texts[at] ?? "";
  if (part.kind === "sound") return String(part.start + spans[at]![0] * part.step);
  if (part.kind === "numbers") return part.names[at] ?? "";
  const columns = imageShape(part)[1];
  return `${Math.floor(at / columns)};${at % columns}`;
}

/** A field in quotes where it needs them. Text that a spreadsheet would run as a formula gets an apostrophe before it. */
export function field(text: string): string {
  const safe = /^[=+\-@\t\r]/.test(text) && !Number.isFinite(Number(text)) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) || safe !== safe.trim() ? `"${safe.replaceAll('"', '""')}"` : safe;
}
