// Where all of the explained number went: in a sentence and as a waterfall.
import { useId } from "preact/hooks";
import { MEANINGS, gapSentence, inputNames } from "./gap";
import type { Account, Part } from "./payload";
import type { Pane } from "./shown";
import { amount, counted, percent, sentence, signed } from "./words";

interface Step {
  name: string;
  said: string;
  value: number;
  kind: "value" | "reached" | "took";
}

export function AccountView({ pane }: { pane: Pane }) {
  const title = useId();
  const { account, value } = pane;
  const { result } = pane.view;
  const parts = pane.parts.map((one) => one.part);
  const whole = account === null && result.numbers.length > 1 ? (result.account ?? null) : null;
  if (pane.parts.length === 0 || !Number.isFinite(value) || (account === null && whole === null)) return null;
  return (
    <section class="account" aria-labelledby={title}>
      <h2 id={title}>Where all of it went</h2>
      {account !== null && <Waterfall account={account} parts={parts} />}
      {whole !== null && (
        <>
          <p class="lead">All {result.numbers.length} numbers together. {said(whole)}</p>
          <Waterfall account={whole} parts={parts} />
        </>
      )}
    </section>
  );
}

function said(account: Account): string {
  return sentence(account.sentences[0]!);
}

/** Why the relevance does not sum to the explained number. */
export function gapOf(pane: Pane): string {
  const { plus, minus } = pane.view.chosen;
  if (pane.account !== null) return said(pane.account);
  const own = pane.view.result.numbers[plus[0]!]?.sentences;
  if (own !== undefined && plus.length === 1 && minus.length === 0) return own[0] === undefined ? "" : sentence(own[0]);
  return sentence(gapSentence(pane.parts.map((one) => one.part), pane.value, pane.sum, Boolean(pane.view.result.account)));
}

const SMALL = 1e-3; // the share of the value from which a cause has a line of its own

function stepsOf(account: Account, parts: Part[]): Step[] {
  const bySize = (a: [string, number], b: [string, number]) => Math.abs(b[1]) - Math.abs(a[1]);
  const names = inputNames(parts);
  const steps: Step[] = [{ name: "the explained number", said: "", value: account.value, kind: "value" }];
  for (const [name, value] of Object.entries(account.reached).sort(bySize)) {
    steps.push({ name: `reaches ${names[name] ?? `the ${name}`}`, said: "", value, kind: "reached" });
  }
  let [rest, count] = [account.residual, 0];
  for (const [name, value] of Object.entries(account.took).sort(bySize)) {
    if (Math.abs(value) >= SMALL * Math.abs(account.value) && value !== 0) {
      steps.push({ name, said: MEANINGS[name] ?? "", value, kind: "took" });
    } else [rest, count] = [rest + value, count + (value === 0 ? 0 : 1)];
  }
  if (Math.abs(rest) > 1e-5 * Math.abs(account.value)) {
    steps.push({ name: count > 0 ? `${counted(count, "smaller cause")} and rounding` : "rounding", said: "", value: rest, kind: "took" });
  }
  return steps;
}

function Waterfall({ account, parts }: { account: Account; parts: Part[] }) {
  const steps = stepsOf(account, parts);
  let at = account.value;
  const spans = steps.map(({ value, kind }): [number, number] => {
    if (kind === "value") return [0, value];
    const from = at;
    at -= value;
    return [at, from];
  });
  const low = Math.min(0, ...spans.flat());
  const high = Math.max(0, ...spans.flat());
  const width = high - low || 1;
  const share = (x: number) => `${(100 * (x - low)) / width}%`;
  return (
    <table class="waterfall">
      <caption class="hidden">The explained number, and step by step what reaches the inputs and what the model's parts take</caption>
      <thead class="hidden">
        <tr>
          <th scope="col">what</th>
          <th scope="col">amount</th>
          <th scope="col">share</th>
          <th scope="col">bar</th>
        </tr>
      </thead>
      <tbody>
        {steps.map(({ name, said, value, kind }, index) => {
          const [from, to] = spans[index]!;
          return (
            <tr key={index} class={kind}>
              <th scope="row">
                {name}
                {said && <small>{said}</small>}
              </th>
              <td class="number">{kind === "value" ? amount(value) : signed(value)}</td>
              <td class="number faint">{account.value === 0 ? "" : percent(value / account.value)}</td>
              <td class="track" aria-hidden="true">
                <i
                  class={value < 0 ? "negative" : ""}
                  style={{ left: share(Math.min(from, to)), width: `${(100 * Math.abs(to - from)) / width}%` }}
                />
                <b style={{ left: share(0) }} />
              </td>
            </tr>
          );
        })}
      </tbody>
    </table>
  );
}
