// One result: what is explained, in words, and its parts.
import { useId, useMemo } from "preact/hooks";
import type { Chosen } from "./chosen";
import { gapOf } from "./AccountView";
import { ImageView } from "./ImageView";
import { Legend } from "./Legend";
import { NumbersView } from "./NumbersView";
import type { Result } from "./payload";
import type { Pane, ShownPart } from "./shown";
import { SoundView } from "./SoundView";
import { canAskIn, predictsNextIn } from "./runs";
import { choose, clicks, coarse, live, panes, pinned, theme, together, unit, unpin, pin } from "./state";
import { TokenText } from "./TokenText";
import { answers } from "./units";
import { steeredSaid } from "./steering";
import { amount, capital } from "./words";

export function ResultPane({ pane, at }: { pane: Pane; at: number }) {
  const { result } = pane.view;
  const count = panes.value.length;
  const isPinned = count > 1 && at === 0;
  const beside = count === 1 && pane.parts.length > 1 && pane.parts[0]!.part.kind === "image";
  const shared = count > 1 ? "Both results share it." : together.value ? "All parts share it." : "";
  const many = pane.parts.length > 1;
  return (
    <article class={`pane${isPinned ? " pinned" : ""}${beside ? " beside" : ""}`} aria-label={isPinned ? "Pinned result" : "Result"}>
      <Heading pane={pane} isPinned={isPinned} />
      {pane.parts.map((shown) => {
        const legendAt = !together.value || shown === pane.parts[0] ? shown : null;
        return (
        <section class={`part ${shown.part.kind}-part`} key={`${result.id}/${shown.index}`} aria-label={shown.part.name}>
          {many && (
            <h3 class="part-name">
              {shown.part.name} <small>{amount(shown.sum)} in all</small>
            </h3>
          )}
          {legendAt === shown && <Legend shown={shown} unit={unit.value.slice(0, -1)} shared={shared} />}
          <PartView pane={pane} at={at} shown={shown} />
          {shown.part.kind === "text" && answers(shown.part, result.numbers.length) && (
            <p class="said help">{coarse ? "Tap" : "Click"} a {unit.value.slice(0, -1)} of the answer to see what made it.</p>
          )}
          {live.value !== null && canAskIn(result, shown.part) && at === count - 1 && <Clicks next={predictsNextIn(result)} />}
        </section>
        );
      })}
    </article>
  );
}

/** What a click on a token of a live text does. */
function Clicks({ next }: { next: boolean }) {
  const id = useId();
  const said = { hold: "holds it", explain: next ? "explains what comes next" : "explains what is predicted there" };
  return (
    <fieldset class="segments clicks">
      <legend>
        A {coarse ? "tap" : "click"} on a {unit.value.slice(0, -1)}
      </legend>
      {(["hold", "explain"] as const).map((one) => (
        <label key={one}>
          <input type="radio" name={id} checked={clicks.value === one} onChange={() => (clicks.value = one)} />
          <span>{said[one]}</span>
        </label>
      ))}
    </fieldset>
  );
}

function PartView({ pane, at, shown }: { pane: Pane; at: number; shown: ShownPart }) {
  const now = theme.value;
  // The same element again is not compared again: pointing at a token must not go through thousands of others.
  const text = useMemo(() => <TokenText pane={pane} paneAt={at} shown={shown} theme={now} />, [pane, at, shown, now]);
  if (shown.part.kind === "text") return text;
  if (shown.part.kind === "image") return <ImageView shown={shown} paneAt={at} />;
  if (shown.part.kind === "sound") return <SoundView shown={shown} paneAt={at} />;
  return <NumbersView shown={shown} />;
}

const LONG = 80;

/** Numbers by their names; an answer's tokens one behind the other are a piece of text. */
function namesOf(result: Result, numbers: number[]): string {
  const text = numbers.every((at, index) => index === 0 || at === numbers[index - 1]! + 1);
  const said = numbers.map((at) => (text && numbers.length > 1 ? result.numbers[at]!.label : numberName(result, at)));
  const joined = said.join(text ? "" : " + ").replaceAll("↵", " ").trim() || numberName(result, numbers[0]!);
  return joined.length > LONG ? `${joined.slice(0, LONG - 1)}…` : joined;
}

export function numberName(result: Result, at: number): string {
  const number = result.numbers[at];
  return number === undefined ? "" : number.label.replaceAll("↵", "line break").trim() || number.said;
}

/** The chosen numbers as a sentence without its full stop. */
export function headingOf(result: Result, chosen: Chosen): string {
  const plus = `What made “${namesOf(result, chosen.plus)}”`;
  return chosen.minus.length === 0 ? plus : `${plus} rather than “${namesOf(result, chosen.minus)}”`;
}

function Heading({ pane, isPinned }: { pane: Pane; isPinned: boolean }) {
  const { result, chosen } = pane.view;
  const id = useId();
  const isNamed = chosen.plus.some((at) => numberName(result, at) !== result.numbers[at]?.said);
  const several = result.numbers.length > 1;
  const set = (next: Chosen) => {
    if (isPinned) pinned.value = { id: result.id, chosen: next };
    else choose(result, next);
  };
  const model = result.checkpoint.split(/[\\/]/).filter(Boolean).pop();
  const facts = [model, result.model_class, result.rules && `rules ${result.rules}`].filter(Boolean);
  const options = result.numbers.map((_, at) => (
    <option key={at} value={at}>
      {several ? `${at + 1} · ` : ""}
      {numberName(result, at)} ({amount(result.numbers[at]!.value)})
    </option>
  ));
  return (
    <header class="heading">
      <p class="facts">
        {facts.map((fact) => (
          <span key={fact}>{fact}</span>
        ))}
        {(result.parts ?? []).length > 0 &&
          (isPinned ? (
            <button class="quiet" onClick={unpin}>
              Unpin
            </button>
          ) : (
            pinned.value === null && (
              <button class="quiet" onClick={pin} title="Hold this view beside the next one, on one scale">
                Pin to compare
              </button>
            )
          ))}
      </p>
      <h1 dir="auto">
        {result.numbers.length === 0 ? (
          result.title
        ) : (
          <>
            {isNamed ? "What made " : "What made the "}
            <mark>
              <bdi>{namesOf(result, chosen.plus)}</bdi>
            </mark>
            {chosen.minus.length > 0 && (
              <>
                {" "}
                rather than{" "}
                <mark class="other">
                  <bdi>{namesOf(result, chosen.minus)}</bdi>
                </mark>
              </>
            )}
          </>
        )}
      </h1>
      {steeredSaid(result.steered) !== "" && <p class="steered">{capital(steeredSaid(result.steered))}</p>}
      {result.numbers.length > 0 && (
        <p class="explained-number">
          {!(chosen.plus.length === 1 && chosen.minus.length === 0 && numberName(result, chosen.plus[0]!) === result.numbers[chosen.plus[0]!]!.said) && (
            <bdi>{saidOf(result, chosen)} </bdi>
          )}
          <strong>= {amount(pane.value)}</strong>
        </p>
      )}
      {result.numbers.length > 0 && pane.parts.length > 0 && Number.isFinite(pane.value) && (
        <p class="gap">{gapOf(pane)}</p>
      )}
      {several && (
        <div class="choices">
          <div class="choice">
            <label for={`${id}-plus`}>Explain</label>
            <select
              id={`${id}-plus`}
              value={chosen.plus[0]}
              onChange={(event) => set({ ...chosen, plus: [Number(event.currentTarget.value)] })}
            >
              {options}
            </select>
          </div>
          <div class="choice">
            <label for={`${id}-minus`}>rather than</label>
            <select
              id={`${id}-minus`}
              value={chosen.minus[0] ?? ""}
              onChange={(event) => set({ ...chosen, minus: event.currentTarget.value === "" ? [] : [Number(event.currentTarget.value)] })}
            >
              <option value="">nothing</option>
              {options}
            </select>
          </div>
        </div>
      )}
    </header>
  );
}

function saidOf(result: Result, { plus, minus }: Chosen): string {
  const said = (numbers: number[]) =>
    numbers.length > 2 ? `sum of ${numbers.length} numbers` : numbers.map((at) => result.numbers[at]?.said ?? "").join(" + ");
  const whole = minus.length === 0 ? said(plus) : `${said(plus)} − ${said(minus)}`;
  return whole.replace(/(^| )' (?=\S)/g, "$1'\u00a0"); // no line ends within the quotes of a token that begins with a space
}
