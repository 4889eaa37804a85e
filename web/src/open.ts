// Files that the page opens: its own JSON, a page of this kind, or an explanation saved by lxt_fx.
import { type Live, type Result, readPage } from "./payload";
import { readSaved, savedIn } from "./saved";
import { open as openByServer } from "./server";

/** The results of a file. Throws an Error that says what the file is not. */
export async function resultsOf(name: string, text: string, live: Live | null): Promise<Result[]> {
  if (text.startsWith(PARQUET)) {
    throw new Error(`${name} is a parquet file, which this page does not read; in Python, lxt_fx.Explanations.load(path).to_html("page.html") makes a page of it`);
  }
  let found: unknown;
  try {
    found = JSON.parse(/^\s*</.test(text) ? dataOf(text) : text);
  } catch {
    throw new Error(`${name} is neither JSON nor a page of lxt_fx; open a file written by to_json, to_html or this page's export`);
  }
  try {
    const saved = savedIn(found);
    if (saved === null) return readPage(found).results;
    if (saved.length === 0) throw new Error(`${name} is an empty list of explanations`);
    if (live !== null) return await openByServer(live, text);
    return await Promise.all(saved.map((one, at) => readSaved(one, saved.length > 1 ? `${name}, explanation ${at + 1}` : name)));
  } catch (error) {
    // what JavaScript says of a missing value helps nobody
    if (!(error instanceof TypeError || error instanceof RangeError || error instanceof DOMException)) throw error;
    throw new Error(`${name} is damaged, or another program wrote it: a value is missing or of another kind`);
  }
}

const PARQUET = "PAR1"; // how such a file begins

/** The data in a page. Parsed without running anything. */
function dataOf(html: string): string {
  return new DOMParser().parseFromString(html, "text/html").getElementById("lxt-fx-data")?.textContent ?? "";
}
