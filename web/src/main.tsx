import { effect } from "@preact/signals";
import { render } from "preact";
import { App } from "./App";
import { readPage } from "./payload";
import { live, madeBy, notice, results, theme } from "./state";
import "./style.css";

const data = document.getElementById("lxt-fx-data")?.textContent ?? "null";
try {
  const found: unknown = JSON.parse(data);
  if (found !== null) {
    const page = readPage(found);
    results.value = page.results.map((result, at) => ({ ...result, id: `${at}-${result.id}` }));
    live.value = page.live;
    madeBy.value = page.made_by;
  }
} catch (error) {
  notice.value = { kind: "error", text: `The data of this page cannot be drawn: ${(error as Error).message}.` };
}
effect(() => {
  document.documentElement.dataset["theme"] = theme.value;
});
render(<App />, document.getElementById("page")!);
