// Files that the page opens: its own JSON, a page of this kind, or an explanation saved by lxt_fx.
import { type Live, type Result, readPage } from "./payload";
import { isSaved, readSaved } from "./saved";
import { open as openByServer } from "./server";

/** The results of a file. Throws an Error that says what the file is not. */
export async function resultsOf(name: string, text: string, live: Live | null): Promise<Result[]> {
  let found: unknown;
  try {
    found = JSON.parse(/^\s*</.test(text) ? dataOf(text) : text);
  } catch {
    throw new Error(`${name} is neither JSON nor a page of lxt_fx; open a file written by to_json, to_html or this page's export`);
  }
  try {
    if (!isSaved(found)) return readPage(found).results;
    return [live === null ? await readSaved(found, name) : await openByServer(live, text)];
  } catch (error) {
    // what JavaScript says of a missing value helps nobody
    if (!(error instanceof TypeError || error instanceof RangeError || error instanceof DOMException)) throw error;
    throw new Error(`${name} is damaged, or another program wrote it: a value is missing or of another kind`);
  }
}

/** The data in a page. Parsed without running anything. */
function dataOf(html: string): string {
  return new DOMParser().parseFromString(html, "text/html").getElementById("lxt-fx-data")?.textContent ?? "";
}
