// What else the model could say next, to be explained or contrasted; of a changed model, before and after.
import type { Live } from "./payload";
import { type Asked, run, running } from "./runs";
import { view } from "./state";
import type { Ask, Candidate } from "./server";
import { amount, percent, tokenName } from "./words";

const MOST = 8;

export function Candidates({ live, asked, onTarget, onContrast }: { live: Live; asked: Asked; onTarget: (token: string) => void; onContrast: (token: string, first: string) => void }) {
  const { ask, candidates, before } = asked;
  if (candidates.length === 0) return null;
  /** What a contrast starts from: what was explained last, else the likeliest token. */
  const first = ask.contrast?.[0] ?? ask.target ?? `id:${candidates[0]!.id}`;
  const again = (change: Partial<Ask>) => void run(live, { ...ask, answer_tokens: 0, ...change }, { ...asked.plain, answer_tokens: 0, ...change });
  const explain = (one: Candidate) => {
    onTarget(one.token);
    again({ target: `id:${one.id}`, contrast: null });
  };
  const contrast = (one: Candidate) => {
    onContrast(one.token, candidates[0]!.token);
    again({ target: null, contrast: [first, `id:${one.id}`] });
  };
  const text = view.value?.result.parts.find((part) => part.kind === "text");
  const there = ask.position !== null && text?.kind === "text" ? text.tokens[ask.position] : undefined;
  const named = there === undefined ? "" : `${asked.predictsNext ? "after" : "at"} “${tokenName(there)}”`;
  const title = `What the model would say ${named || (asked.predictsNext ? "next" : "")}`.trim();
  const buttons = (one: Candidate, share: boolean) => (
    <>
      <button type="button" disabled={running.value !== null} title={`explain ${tokenName(one.token)}`} onClick={() => explain(one)}>
        <bdi>{tokenName(one.token)}</bdi> {share && <small>{percent(one.probability)}</small>}
      </button>
      {first !== `id:${one.id}` && (
        <button type="button" class="quiet" disabled={running.value !== null} aria-label={`contrast with ${tokenName(one.token)}`} onClick={() => contrast(one)}>
          contrast
        </button>
      )}
    </>
  );
  if (before === null) {
    return (
      <div class="candidates">
        <h3>{title}</h3>
        <ul>
          {candidates.map((one) => (
            <li key={one.id}>{buttons(one, true)}</li>
          ))}
        </ul>
      </div>
    );
  }
  const own = new Map(before.map((one) => [one.id, one]));
  const most = (one: Candidate) => Math.max(one.probability, own.get(one.id)?.probability ?? 0);
  const shown = [...candidates].sort((a, b) => most(b) - most(a)).slice(0, MOST);
  return (
    <div class="candidates">
      <h3>{title}</h3>
      <table class="compared">
        <thead>
          <tr>
            <th scope="col">token</th>
            <th scope="col">as it is</th>
            <th scope="col">changed</th>
            <th scope="col">logit</th>
          </tr>
        </thead>
        <tbody>
          {shown.map((one) => {
            const old = own.get(one.id);
            return (
              <tr key={one.id}>
                <th scope="row">{buttons(one, false)}</th>
                <td class="number">{old === undefined ? "" : percent(old.probability)}</td>
                <td class="number">{percent(one.probability)}</td>
                <td class="number">
                  {old === undefined ? "" : `${amount(old.logit)} → `}
                  {amount(one.logit)}
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}
