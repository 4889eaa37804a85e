// Beside the text: the source that is pointed at with its routes, and the strongest sources.
import { useEffect, useId, useMemo, useRef } from "preact/hooks";
import { minusMarks, pixels, sized } from "./canvas";
import { SCALES } from "./colour";
import type { Latent, Live, Span, TextPart } from "./payload";
import { headsOf, peak, unitsOf } from "./routes";
import { canSteer, shownAsk, steer } from "./runs";
import { scaled } from "./scale";
import { type Pane, type ShownPart, placeName, strongest } from "./shown";
import { clicks, coarse, ends, held, live, pointed, source, theme } from "./state";
import { changeSaid, changesOf } from "./steering";
import { amount, counted, ordinal, percent, side, signed } from "./words";

const MOST = 8;

export function Sources({ panes }: { panes: Pane[] }) {
  const now = source.value;
  const paneAt = now?.pane ?? panes.length - 1;
  const pane = panes[paneAt];
  if (pane === undefined || pane.parts.length === 0) return null;
  const part = now === null ? null : (pane.parts[now.part] ?? null);
  const place = now !== null && part !== null && now.place < part.values.length ? now.place : null;
  const latent = pane.view.result.latent ?? null;
  const span = part !== null && place !== null && latent?.part === part.index ? (part.spans[place] ?? null) : null;
  return (
    <aside class="sources" aria-label="Sources">
      {part !== null && place !== null ? (
        <Source pane={pane} part={part} place={place} />
      ) : (
        <div class="source hint">
          <p>{hintOf(pane.parts[0]!.part.kind === "text" ? "token" : "place")}</p>
        </div>
      )}
      {latent !== null && <Inside latent={latent} pane={pane} span={span} name={part && place !== null ? placeName(part, place) : null} />}
      <Strongest pane={pane} paneAt={paneAt} />
    </aside>
  );
}

/** How to see what a place gave. */
function hintOf(place: string): string {
  const explains = live.value !== null && clicks.value === "explain";
  if (coarse) {
    if (explains) return `A tap on a ${place} explains it. For what it gave, choose above that a tap holds it.`;
    return `Tap a ${place} to see what it gave. A second tap releases it.`;
  }
  const holds = explains ? "Space holds it, and so does a click with Shift." : "A click holds it.";
  return `Point at a ${place}, or move to one with the arrow keys, to see what it gave. ${holds}`;
}

function Source({ pane, part, place }: { pane: Pane; part: ShownPart; place: number }) {
  const value = part.values[place]!;
  const all = part.values.reduce((sum, one, at) => sum + (part.counts[at] ? Math.abs(one) : 0), 0);
  const stronger = part.values.reduce((sum, one, at) => sum + (part.counts[at] && Math.abs(one) > Math.abs(value) ? 1 : 0), 0);
  const count = part.counts.filter(Boolean).length;
  const isHeld = held.value !== null && pointed.value === null;
  const text = part.part.kind === "text" ? (part.part as TextPart) : null;
  const [start, end] = part.spans[place] ?? [place, place + 1];
  return (
    <div class="source">
      <p class="source-name">
        <bdi>{placeName(part, place)}</bdi>
        {isHeld && (
          <button class="quiet" onClick={() => (held.value = null)}>
            release
          </button>
        )}
      </p>
      <p class={`source-value ${value < 0 ? "negative" : value > 0 ? "positive" : ""}`}>
        {signed(value)} <span>{side(value)}</span>
      </p>
      <dl>
        {part.counts[place] ? (
          <>
            <dt>strength</dt>
            <dd>
              {ordinal(stronger + 1)} of {count.toLocaleString("en")}
            </dd>
            <dt>of all relevance</dt>
            <dd>{all ? percent(Math.abs(value) / all) : "0 %"}</dd>
          </>
        ) : (
          <>
            <dt>colours</dt>
            <dd>left out</dd>
          </>
        )}
        {pane.value !== 0 && (
          <>
            <dt>of {amount(pane.value)}</dt>
            <dd>{percent(value / pane.value)}</dd>
          </>
        )}
        {text !== null && (
          <>
            <dt>position</dt>
            <dd>{end - start > 1 ? `${start} to ${end - 1}` : start}</dd>
            {text.ids && end - start === 1 && (
              <>
                <dt>token id</dt>
                <dd>{text.ids[start]}</dd>
              </>
            )}
          </>
        )}
      </dl>
    </div>
  );
}

function Inside({ latent, pane, span, name }: { latent: Latent; pane: Pane; span: Span | null; name: string | null }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const { chosen } = pane.view;
  const heads = useMemo(() => headsOf(latent, chosen, span), [latent, chosen, span]);
  const { found: units, unknown } = useMemo(() => unitsOf(latent, chosen, span, MOST), [latent, chosen, span]);
  const change = live.value !== null && canSteer(pane.view.result) ? live.value : null;
  const shares = useMemo(
    () => heads && scaled(heads.values, new Array<boolean>(heads.values.length).fill(true), ends.value === "rank" ? "rank" : "max"),
    [heads, ends.value],
  );
  const across = heads ? Math.min(18, 300 / heads.columns) : 0;
  const line = heads ? Math.min(14, Math.max(5, 190 / heads.rows)) : 0;
  useEffect(() => {
    if (heads === null || shares === null || canvas.current === null) return;
    const context = sized(canvas.current, heads.columns * across, heads.rows * line);
    context.imageSmoothingEnabled = false;
    const flipped = new Float64Array(shares.shares.length);
    for (let row = 0; row < heads.rows; row++) {
      flipped.set(shares.shares.subarray(row * heads.columns, (row + 1) * heads.columns), (heads.rows - 1 - row) * heads.columns);
    }
    context.drawImage(pixels(flipped, heads.rows, heads.columns, theme.value), 0, 0, heads.columns * across, heads.rows * line);
    minusMarks(context, flipped, heads.columns, [0, 0, across, line], theme.value);
  }, [heads, shares, theme.value]);
  const where = name === null ? "over all tokens" : "at this token";
  const top = heads ? peak(heads.values) : 0;
  return (
    <>
      {heads !== null && (
        <section>
          <h2>
            Heads <small>{where}</small>
          </h2>
          <div class="heads" dir="ltr">
            <canvas ref={canvas} role="img" aria-label={`Relevance of ${heads.rows} layers x ${heads.columns} heads ${where}`} />
          </div>
          <p class="said">
            Layers upwards, heads to the right. Most: {latent.heads!.places[Math.floor(top / heads.columns)]!.replace(/\.heads$/, "")}, head {top % heads.columns}:{" "}
            {signed(heads.values[top]!)} {side(heads.values[top]!)}.
          </p>
          {change !== null && (
            <ul class="units" aria-label="Strongest heads">
              {strongestHeads(heads.values).map((at) => {
                const [place, head] = [latent.heads!.places[Math.floor(at / heads.columns)]!, at % heads.columns];
                return (
                  <li key={at}>
                    <span class="unit-label">head {head}</span>
                    <span class={`number ${heads.values[at]! < 0 ? "negative" : "positive"}`}>
                      {signed(heads.values[at]!)} <small>{side(heads.values[at]!)}</small>
                    </span>
                    <span class="faint">
                      {place}
                      <SwitchOff live={change} place={place} unit={head} />
                    </span>
                  </li>
                );
              })}
            </ul>
          )}
        </section>
      )}
      {(latent.units ?? []).length > 0 && (
        <section>
          <h2>
            Neurons and features <small>{where}</small>
          </h2>
          {units.length === 0 && unknown === 0 && <p class="said">None of the strongest ones has relevance here.</p>}
          <ol class="units">
            {units.map(({ unit, here }) => (
              <li key={`${unit.place}/${unit.unit}`} title={(unit.samples ?? []).join("\n")}>
                <span class="unit-label">{unit.label ?? `unit ${unit.unit}`}</span>
                <span class={`number ${here < 0 ? "negative" : "positive"}`}>
                  {signed(here)} <small>{side(here)}</small>
                </span>
                <span class="faint">
                  {unit.place}
                  {unit.label === null ? "" : ` · ${unit.unit}`}
                  {unit.activation === null ? "" : ` · activation ${amount(unit.activation)}`}
                  {change !== null && <SwitchOff live={change} place={unit.place} unit={unit.unit} />}
                </span>
              </li>
            ))}
          </ol>
          {units.some(({ unit }) => unit.activation !== null) && (
            <p class="said">The activation is the unit’s own value, at the token where its relevance is largest.</p>
          )}
          {unknown > 0 && (
            <p class="said">
              {counted(unknown, "unit")} more {unknown === 1 ? "is" : "are"} among the strongest of {chosen.minus.length > 0 ? "one side" : "some of these numbers"} only, and
              what {unknown === 1 ? "it is" : "they are"} for the other{chosen.minus.length > 0 ? "" : "s"} is not in this page, so{" "}
              {unknown === 1 ? "it is" : "they are"} not listed.
            </p>
          )}
        </section>
      )}
    </>
  );
}

function SwitchOff({ live, place, unit }: { live: Live; place: string; unit: number }) {
  const change = { place, unit, by: "scale" as const, amount: 0 };
  const isOff = changesOf(shownAsk.value?.ask.steer).some((one) => one.place === place && one.unit === unit);
  if (isOff) return <span class="off">changed</span>;
  return (
    <button class="quiet" aria-label={`Switch off ${changeSaid(change).replace(/ off$/, "")}`} onClick={() => steer(live, change)}>
      switch off
    </button>
  );
}

const HEADS = 3;

/** The heads with the most relevance, of either sign. */
function strongestHeads(values: Float64Array): number[] {
  const order = Array.from(values, (_, at) => at).filter((at) => values[at] !== 0);
  return order.sort((a, b) => Math.abs(values[b]!) - Math.abs(values[a]!)).slice(0, HEADS);
}

function Strongest({ pane, paneAt }: { pane: Pane; paneAt: number }) {
  const title = useId();
  const found = useMemo(() => strongest(pane, MOST), [pane]);
  const colours = SCALES[theme.value];
  const most = Math.abs(found[0]?.[0].values[found[0][1]] ?? 0);
  if (found.length === 0) return null;
  return (
    <section aria-labelledby={title}>
      <h2 id={title}>
        Strongest sources <small>{pane.parts.length > 1 ? "of all parts" : `of ${counted(pane.parts[0]!.counts.filter(Boolean).length, "place")}`}</small>
      </h2>
      <ol class="strongest">
        {found.map(([part, at]) => {
          const value = part.values[at]!;
          const here = { pane: paneAt, part: part.index, place: at };
          return (
            <li key={`${part.index}/${at}`}>
              <button
                onClick={() => (held.value = here)}
                onPointerEnter={() => (pointed.value = here)}
                onPointerLeave={() => (pointed.value = null)}
              >
                <bdi>{placeName(part, at)}</bdi>
                <span class="number">{signed(value)}</span>
                <small>{side(value)}</small>
                <i
                  class={value < 0 ? "negative" : ""}
                  style={{ width: `${(100 * Math.abs(value)) / most}%`, background: value < 0 ? colours.negative : colours.positive }}
                />
              </button>
            </li>
          );
        })}
      </ol>
    </section>
  );
}
