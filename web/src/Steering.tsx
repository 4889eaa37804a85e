// What is changed inside the model: the list with a way back, and a form for a unit that is not among the strongest.
import { useState } from "preact/hooks";
import type { Live } from "./payload";
import { running, shownAsk, steer, undo } from "./runs";
import type { Ask } from "./server";
import { type Change, changeSaid, changesOf } from "./steering";

const BY = { off: "switch off", scale: "multiply by", value: "set to" };

export function Steering({ live, fallback }: { live: Live; fallback: Ask | null }) {
  const changes = changesOf(shownAsk.value?.ask.steer);
  const busy = running.value !== null;
  return (
    <div class="steering">
      {changes.length > 0 && (
        <>
          <h3 id="changed-inside">Changed inside the model</h3>
          <ul aria-labelledby="changed-inside">
            {changes.map((change) => (
              <li key={`${change.place}/${change.unit}`}>
                <span>{changeSaid(change)}</span>
                <button type="button" class="quiet" disabled={busy} aria-label={`Undo: ${changeSaid(change)}`} onClick={() => undo(live, change)}>
                  undo
                </button>
              </li>
            ))}
            {changes.length > 1 && (
              <li>
                <button type="button" class="quiet" disabled={busy} onClick={() => undo(live, null)}>
                  Undo all
                </button>
              </li>
            )}
          </ul>
        </>
      )}
      {(shownAsk.value !== null || fallback !== null) && <Other live={live} fallback={fallback} />}
    </div>
  );
}

function Other({ live, fallback }: { live: Live; fallback: Ask | null }) {
  const [place, setPlace] = useState("");
  const [unit, setUnit] = useState("");
  const [by, setBy] = useState<keyof typeof BY>("off");
  const [amount, setAmount] = useState("1");
  const number = Number(amount);
  const whole = unit.trim() === "" ? null : Number(unit);
  const fits = place.trim() !== "" && (whole === null || (Number.isInteger(whole) && whole >= 0)) && (by === "off" || (amount.trim() !== "" && Number.isFinite(number)));
  const change: Change = { place: place.trim(), unit: whole, by: by === "value" ? "value" : "scale", amount: by === "off" ? 0 : number };
  const submit = () => {
    if (fits && running.value === null) steer(live, change, fallback ?? undefined);
  };
  /** Enter changes the unit, and does not send the form around. */
  const enter = (event: KeyboardEvent) => {
    if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    submit();
  };
  return (
    <details>
      <summary>Change a unit inside the model</summary>
      <div class="live-options" onKeyDown={enter}>
        <label class="field">
          Place
          <input type="text" value={place} placeholder="mlp.3.neurons" spellcheck={false} onInput={(event) => setPlace(event.currentTarget.value)} />
        </label>
        <label class="field narrow">
          Unit
          <input type="text" inputMode="numeric" value={unit} placeholder="all" onInput={(event) => setUnit(event.currentTarget.value)} />
        </label>
        <label class="field narrow">
          What is done
          <select value={by} onChange={(event) => setBy(event.currentTarget.value as keyof typeof BY)}>
            {Object.entries(BY).map(([key, said]) => (
              <option key={key} value={key}>
                {said}
              </option>
            ))}
          </select>
        </label>
        {by !== "off" && (
          <label class="field narrow">
            Amount
            <input type="text" inputMode="decimal" value={amount} onInput={(event) => setAmount(event.currentTarget.value)} />
          </label>
        )}
        <button type="button" class="button" disabled={!fits || running.value !== null} onClick={submit}>
          Explain with it
        </button>
      </div>
    </details>
  );
}
