import { useEffect, useRef, useState } from "preact/hooks";
import { AccountView } from "./AccountView";
import { CircuitView } from "./CircuitView";
import { Controls } from "./Controls";
import { LiveForm } from "./LiveForm";
import { Matrix } from "./Matrix";
import { Menu } from "./Menu";
import { resultsOf } from "./open";
import type { Result } from "./payload";
import { ResultPane, numberName } from "./ResultPane";
import { Routes } from "./Routes";
import { Sources } from "./Sources";
import { add, live, madeBy, notice, pane, panes, remove, results, show, theme, view, wantedTheme } from "./state";
import { Origin, Tables } from "./Tables";
import { Tip } from "./Tip";
import { capital } from "./words";

const LARGEST = 200_000_000;

/** Adds the results of the files; what cannot be read is said. */
async function openFiles(files: Iterable<File>): Promise<void> {
  notice.value = null;
  for (const file of files) {
    try {
      if (file.size > LARGEST) throw new Error(`${file.name} has more than ${LARGEST / 1e6} MB`);
      const ids = (await resultsOf(file.name, await file.text(), live.value)).map(add);
      if (ids.length > 1) show(results.value.find((one) => one.id === ids[0])!);
    } catch (error) {
      notice.value = { kind: "error", text: `${(error as Error).message}.` };
    }
  }
}

export function App() {
  const [over, setOver] = useState(false);
  useEffect(() => {
    const drag = (event: DragEvent) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      setOver(true);
    };
    const leave = (event: DragEvent) => {
      if (event.relatedTarget === null) setOver(false);
    };
    const drop = (event: DragEvent) => {
      setOver(false);
      if (event.defaultPrevented) return; // a picture of a question
      event.preventDefault();
      if (event.dataTransfer) void openFiles(event.dataTransfer.files);
    };
    addEventListener("dragover", drag);
    addEventListener("dragleave", leave);
    addEventListener("drop", drop);
    return () => {
      removeEventListener("dragover", drag);
      removeEventListener("dragleave", leave);
      removeEventListener("drop", drop);
    };
  }, []);
  const now = pane.value;
  const title = now === null ? "lxt_fx explorer" : `${now.view.result.title} · lxt_fx`;
  useEffect(() => {
    document.title = title;
  }, [title]);
  return (
    <>
      <a class="skip" href="#result">
        To the result
      </a>
      <Top />
      <main id="result" tabIndex={-1}>
        {notice.value !== null && (
          <p class={`notice ${notice.value.kind}`} role="alert">
            {notice.value.text}
            <button class="quiet" onClick={() => (notice.value = null)} aria-label="Close">
              ×
            </button>
          </p>
        )}
        {live.value !== null && <LiveForm live={live.value} />}
        {now === null ? <Nothing /> : <Shown />}
      </main>
      <Tip />
      {over && <div class="drop">Drop a saved result to open it</div>}
    </>
  );
}

function Shown() {
  const now = pane.value!;
  const { result } = now.view;
  const matrix = now.parts.find((part) => part.part.kind === "text" && part.part.several && result.numbers.length > 1);
  const last = panes.value.length - 1;
  if (now.parts.length === 0) {
    return (
      <div class="document">
        <header class="heading">
          <p class="facts">
            {[result.kind, result.model_class].filter(Boolean).map((fact) => (
              <span key={fact}>{fact}</span>
            ))}
          </p>
          <h1>{capital(result.title)}</h1>
        </header>
        {result.circuit && <CircuitView key={result.id} result={result} circuit={result.circuit} />}
        <Tables result={result} />
        <Origin result={result} madeBy={madeBy.value} />
      </div>
    );
  }
  return (
    <div class="document">
      <Controls pane={now} />
      <div class="columns">
        <div class={`panes${panes.value.length > 1 ? " two" : ""}`} style={{ "--parts": Math.max(...panes.value.map((one) => one.parts.length)) }}>
          {panes.value.map((one, at) => (
            <ResultPane key={at === last ? "now" : "pinned"} pane={one} at={at} />
          ))}
        </div>
        <Sources panes={panes.value} />
        <div class="more">
          <AccountView pane={now} />
          <Routes pane={now} paneAt={last} />
          {matrix && <Matrix key={result.id} pane={now} shown={matrix} />}
          <Tables result={result} />
          <Origin result={result} madeBy={madeBy.value} />
        </div>
      </div>
    </div>
  );
}

/** What tells a result from the others: what is explained, the rules where they differ, whether it was steered, the text. */
function tabName(result: Result): string {
  const label = result.numbers.length === 1 ? numberName(result, 0) : "";
  const rules = new Set(results.value.map((one) => one.rules)).size > 1 ? result.rules : "";
  const steered = (result.steered ?? []).length > 0 ? "changed inside" : "";
  return [label, rules, steered, result.title === label ? "" : result.title].filter(Boolean).join(" · ") || result.id;
}

const MOST_TABS = 8;

/** Many results as a list to choose from. */
function Chooser() {
  const now = view.value?.result;
  return (
    <nav class="chooser" aria-label="Results">
      <select
        aria-label={`One of ${results.value.length} results`}
        value={now?.id}
        onChange={(event) => show(results.value.find((one) => one.id === event.currentTarget.value)!)}
      >
        {results.value.map((result, at) => (
          <option key={result.id} value={result.id}>
            {at + 1} · {tabName(result)}
          </option>
        ))}
      </select>
      {now !== undefined && (
        <button class="quiet" aria-label={`Close ${tabName(now)}`} onClick={() => remove(now)}>
          ×
        </button>
      )}
    </nav>
  );
}

function Top() {
  const picker = useRef<HTMLInputElement>(null);
  const id = view.value?.result.id;
  useEffect(() => document.querySelector(".tab.current")?.scrollIntoView({ block: "nearest", inline: "nearest" }), [id]);
  return (
    <header class="top">
      <div class="top-inside">
      <span class="name">
        lxt_fx <span>explorer</span>
      </span>
      {results.value.length > MOST_TABS && <Chooser />}
      {results.value.length > 1 && results.value.length <= MOST_TABS && (
        <nav class="tabs" aria-label="Results">
          {results.value.map((result) => {
            const isCurrent = result.id === view.value?.result.id;
            return (
              <span class={`tab${isCurrent ? " current" : ""}`} key={result.id}>
                <button aria-current={isCurrent ? "true" : undefined} onClick={() => show(result)} title={tabName(result)}>
                  <bdi>{tabName(result)}</bdi>
                </button>
                <button class="close" aria-label={`Close ${tabName(result)}`} onClick={() => remove(result)}>
                  ×
                </button>
              </span>
            );
          })}
        </nav>
      )}
      <span class="tools">
        <button class="button" onClick={() => picker.current?.click()}>
          Open
        </button>
        <input
          ref={picker}
          type="file"
          hidden
          multiple
          accept=".json,.html,application/json,text/html"
          aria-label="Open a saved result"
          onChange={(event) => {
            const files = [...(event.currentTarget.files ?? [])];
            event.currentTarget.value = "";
            void openFiles(files);
          }}
        />
        <Menu />
        <button
          class="button icon"
          aria-label={theme.value === "dark" ? "Light theme" : "Dark theme"}
          title={theme.value === "dark" ? "Light theme" : "Dark theme"}
          onClick={() => (wantedTheme.value = theme.value === "dark" ? "light" : "dark")}
        >
          <svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">
            <circle cx="8" cy="8" r="6.25" fill="none" stroke="currentColor" stroke-width="1.5" />
            <path d="M8 1.75a6.25 6.25 0 0 1 0 12.5z" fill="currentColor" />
          </svg>
        </button>
      </span>
      </div>
    </header>
  );
}

function Nothing() {
  return (
    <div class="nothing">
      <h1>{live.value === null ? "Open a result" : "No result yet"}</h1>
      <p>
        {live.value === null
          ? "Drop a file here, or choose Open: an explanation saved by to_json, a page written by to_html, or a file exported from this page. Nothing leaves your computer."
          : "Type a text above and choose Explain, or drop a saved result here."}
      </p>
    </div>
  );
}
