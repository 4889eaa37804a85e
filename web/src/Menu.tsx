// Files of what is shown: PNG, SVG, CSV, JSON.
import { useEffect, useRef } from "preact/hooks";
import { gapOf } from "./AccountView";
import { csv } from "./csv";
import { drawing, fileName, measured, png, svg } from "./drawing";
import { scaleSentence } from "./Legend";
import { FORMAT } from "./payload";
import { headingOf } from "./ResultPane";
import { asShown, madeBy, notice, pane, theme, unit } from "./state";

type Kind = "PNG" | "SVG" | "CSV" | "JSON";

export function Menu() {
  const box = useRef<HTMLDetailsElement>(null);
  useEffect(() => {
    const close = (event: Event) => {
      const inside = box.current?.contains(event.target as Node);
      if (!inside || (event as KeyboardEvent).key === "Escape") box.current?.removeAttribute("open");
    };
    addEventListener("pointerdown", close);
    addEventListener("keydown", close);
    return () => {
      removeEventListener("pointerdown", close);
      removeEventListener("keydown", close);
    };
  }, []);
  const shown = pane.value;
  if (shown === null) return null;
  const kinds: Kind[] = shown.parts.length > 0 ? ["PNG", "SVG", "CSV", "JSON"] : ["JSON"];
  return (
    <details class="menu" ref={box}>
      <summary class="button">Export</summary>
      <div class="menu-list">
        {kinds.map((kind) => (
          <button
            key={kind}
            onClick={() => {
              box.current?.removeAttribute("open");
              void save(kind);
            }}
          >
            {kind} <small>{WHAT[kind]}</small>
          </button>
        ))}
      </div>
    </details>
  );
}

const WHAT: Record<Kind, string> = {
  PNG: "the picture",
  SVG: "the picture, to scale",
  CSV: "each place and its relevance",
  JSON: "the result, to open again",
};

async function save(kind: Kind): Promise<void> {
  const shown = pane.value!;
  const { result, chosen } = shown.view;
  try {
    const name = fileName(result.numbers.length > 0 ? headingOf(result, chosen) : result.title);
    if (kind === "JSON") {
      const page = { format: FORMAT, made_by: madeBy.value, results: [asShown(result)], live: null };
      return download(new Blob([JSON.stringify(page)], { type: "application/json" }), `${name}.json`);
    }
    if (kind === "CSV") return download(new Blob([csv(shown)], { type: "text/csv;charset=utf-8" }), `${name}.csv`);
    const said = shown.parts.map((part) => scaleSentence(part, unit.value.slice(0, -1)));
    said.push(gapOf(shown));
    const drawn = drawing(shown, theme.value, headingOf(result, chosen), said, measured());
    const file = kind === "SVG" ? new Blob([svg(drawn)], { type: "image/svg+xml" }) : await png(drawn);
    download(file, `${name}.${kind.toLowerCase()}`);
  } catch (error) {
    notice.value = { kind: "error", text: `The ${kind} could not be written: ${(error as Error).message}.` };
  }
}

function download(file: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
