// What changes the picture and not the numbers: scale, units, tokens that are left out, search.
import { signal } from "@preact/signals";
import { useId } from "preact/hooks";
import { LiveFormRules } from "./LiveForm";
import type { TextPart } from "./payload";
import type { Ends } from "./scale";
import { type Pane, found } from "./shown";
import { ends, forget, live, muted, searched, together, unit } from "./state";
import type { Muted, UnitKind } from "./units";
import { counted, listed } from "./words";

const ENDS: [Ends, string, string][] = [
  ["robust", "robust", "ends at the 99 % quantile, so that a few strong tokens do not take all colour"],
  ["max", "max", "ends at the largest relevance"],
  ["rank", "rank", "colours by rank: strongest to weakest"],
];
const UNITS: [UnitKind, string][] = [
  ["tokens", "tokens"],
  ["words", "words"],
  ["sentences", "sentences"],
];
const MUTED: [keyof Muted, string][] = [
  ["first", "first"],
  ["last", "last"],
  ["special", "special"],
];

const narrow = signal(matchMedia("(max-width: 760px)").matches);
matchMedia("(max-width: 760px)").addEventListener("change", (event) => (narrow.value = event.matches));

/** On a phone the controls are folded away behind a line that says what is chosen. */
export function Controls({ pane }: { pane: Pane }) {
  if (!narrow.value) return <Choices pane={pane} />;
  const left = MUTED.filter(([key]) => muted.value[key]).map(([, name]) => name);
  const said = [`${ends.value} scale`, unit.value, left.length > 0 ? `without ${listed(left)}` : ""].filter(Boolean).join(" · ");
  return (
    <details class="folded">
      <summary>
        View <span>{said}</span>
      </summary>
      <Choices pane={pane} />
    </details>
  );
}

function Choices({ pane }: { pane: Pane }) {
  const id = useId();
  const texts = pane.parts.filter((part) => part.part.kind === "text");
  const hasSpecial = texts.some((part) => (part.part as TextPart).special.some(Boolean));
  const hits = texts.reduce((sum, part) => sum + found(part, searched.value).length, 0);
  const next = (event: KeyboardEvent) => {
    if (event.key === "Escape" && searched.value !== "") {
      searched.value = "";
      event.preventDefault();
    }
    if (event.key !== "Enter") return;
    event.preventDefault();
    const marked = [...document.querySelectorAll<HTMLElement>(".t.hit")];
    if (marked.length === 0) return;
    const at = marked.findIndex((one) => one.classList.contains("hit-now"));
    marked[at]?.classList.remove("hit-now");
    const to = marked[(at + (event.shiftKey ? -1 : 1) + marked.length) % marked.length]!;
    to.classList.add("hit-now");
    to.scrollIntoView({ block: "center" });
  };
  return (
    <div class="controls" role="group" aria-label="How it is shown">
      {live.value !== null && <LiveFormRules live={live.value} />}
      <fieldset class="segments">
        <legend>Scale</legend>
        {ENDS.map(([value, name, title]) => (
          <label key={value} title={title}>
            <input type="radio" name={`${id}-ends`} checked={ends.value === value} onChange={() => (ends.value = value)} />
            <span>{name}</span>
          </label>
        ))}
      </fieldset>
      {texts.length > 0 && (
        <>
          <fieldset class="segments">
            <legend>Units</legend>
            {UNITS.map(([value, name]) => (
              <label key={value}>
                <input
                  type="radio"
                  name={`${id}-unit`}
                  checked={unit.value === value}
                  onChange={() => {
                    unit.value = value;
                    forget();
                  }}
                />
                <span>{name}</span>
              </label>
            ))}
          </fieldset>
          <fieldset class="pills">
            <legend>Leave out</legend>
            {MUTED.filter(([key]) => key !== "special" || hasSpecial).map(([key, name]) => (
              <label key={key}>
                <input
                  type="checkbox"
                  checked={muted.value[key]}
                  onChange={(event) => (muted.value = { ...muted.value, [key]: event.currentTarget.checked })}
                />
                <span>{name}</span>
              </label>
            ))}
          </fieldset>
        </>
      )}
      {pane.parts.length > 1 && (
        <fieldset class="pills">
          <legend>Parts</legend>
          <label>
            <input type="checkbox" checked={together.value} onChange={(event) => (together.value = event.currentTarget.checked)} />
            <span>on one scale</span>
          </label>
        </fieldset>
      )}
      {texts.length > 0 && (
        <div class="search">
          <label for={`${id}-search`}>Search</label>
          <input
            id={`${id}-search`}
            type="search"
            dir="auto"
            value={searched.value}
            placeholder="in the text"
            onInput={(event) => (searched.value = event.currentTarget.value)}
            onKeyDown={next}
          />
          <span class="faint" role="status">
            {searched.value.trim() === "" ? "" : hits === 0 ? "not found" : `${counted(hits, unit.value.slice(0, -1))}`}
          </span>
        </div>
      )}
    </div>
  );
}
