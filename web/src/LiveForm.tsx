// A live page: a text or a chat, what to explain in it, and how far the model is.
import { signal } from "@preact/signals";
import { useId, useState } from "preact/hooks";
import type { Live } from "./payload";
import { type Ask, type Candidate, type Job, ServerError, cancel, follow, start } from "./server";
import { add } from "./state";
import { counted, percent, sentence, tokenName } from "./words";

type Turn = { role: string; content: string };

const running = signal<{ id: string; job: Job | null } | null>(null);
const problem = signal<string | null>(null);
const candidates = signal<Candidate[]>([]);
const asked = signal<Ask | null>(null);
export const rules = signal<string | null>(null);

/** Runs an ask to its end, and shows its result. */
async function run(live: Live, ask: Ask): Promise<void> {
  problem.value = null;
  asked.value = ask;
  try {
    const { job } = await start(live, ask);
    running.value = { id: job, job: null };
    const last = await follow(live, job, (seen) => (running.value = { id: job, job: seen }));
    if (last.candidates) candidates.value = last.candidates;
    if (last.state === "failed") problem.value = last.error?.message ? sentence(last.error.message) : "The run failed, and the server did not say why.";
    if (last.state === "done" && last.result) add(last.result);
  } catch (error) {
    problem.value = error instanceof ServerError ? error.message : `The answer cannot be drawn: ${(error as Error).message}.`;
  } finally {
    running.value = null;
  }
}

/** Runs the last ask again under another table. */
function runAgain(live: Live, table: string): void {
  rules.value = table;
  if (asked.value !== null && running.value === null) void run(live, { ...asked.value, rules: table });
}

export function LiveForm({ live }: { live: Live }) {
  const id = useId();
  const [kind, setKind] = useState<"text" | "chat">("text");
  const [text, setText] = useState("");
  const [turns, setTurns] = useState<Turn[]>([{ role: "user", content: "" }]);
  const [target, setTarget] = useState("");
  const [contrast, setContrast] = useState("");
  const [tokens, setTokens] = useState(0);
  const [latent, setLatent] = useState(false);
  const [account, setAccount] = useState(true);
  const table = rules.value ?? live.tables[0]?.name ?? "attnlrp";
  const length = kind === "text" ? text.length : turns.reduce((sum, turn) => sum + turn.content.length, 0);
  const most = live.limits?.characters ?? Infinity;
  const mostTokens = live.limits?.answer_tokens ?? 512;
  const busy = running.value !== null;
  const canRun = length > 0 && length <= most && !busy;

  const ask = (change: Partial<Ask>): Ask => ({
    kind: "explain",
    ...(kind === "text" ? { text } : { chat: turns.filter((turn) => turn.content !== "") }),
    target: contrast && target ? null : target || null,
    contrast: contrast && target ? [target, contrast] : null,
    position: null,
    rules: table,
    answer_tokens: tokens,
    latent,
    account,
    ...change,
  });
  /** What a contrast starts from: what was explained last, else the likeliest token. */
  const first = asked.value?.contrast?.[0] ?? asked.value?.target ?? `id:${candidates.value[0]?.id}`;
  const submit = (event: Event) => {
    event.preventDefault();
    if (canRun) void run(live, ask({}));
  };
  const quick = (event: KeyboardEvent) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
  };
  const turn = (at: number, change: Partial<Turn>) => setTurns(turns.map((one, index) => (index === at ? { ...one, ...change } : one)));

  return (
    <form class="live" onSubmit={submit} onKeyDown={quick} aria-label="Ask the model">
      <div class="live-head">
        <h2>
          Ask <bdi>{live.model}</bdi>
        </h2>
        {live.asks.includes("chat") && (
          <fieldset class="segments">
            <legend class="hidden">Input</legend>
            {(["text", "chat"] as const).map((one) => (
              <label key={one}>
                <input type="radio" name={`${id}-kind`} checked={kind === one} onChange={() => setKind(one)} />
                <span>{one === "text" ? "Text" : "Chat"}</span>
              </label>
            ))}
          </fieldset>
        )}
      </div>
      {kind === "text" ? (
        <textarea
          dir="auto"
          rows={3}
          value={text}
          placeholder="Type or paste a text"
          aria-label="Text"
          onInput={(event) => setText(event.currentTarget.value)}
        />
      ) : (
        <div class="turns">
          {turns.map((one, at) => (
            <div class="turn" key={at}>
              <select aria-label={`Role of message ${at + 1}`} value={one.role} onChange={(event) => turn(at, { role: event.currentTarget.value })}>
                <option>system</option>
                <option>user</option>
                <option>assistant</option>
              </select>
              <textarea
                dir="auto"
                rows={2}
                value={one.content}
                aria-label={`Message ${at + 1}`}
                onInput={(event) => turn(at, { content: event.currentTarget.value })}
              />
              {turns.length > 1 && (
                <button type="button" class="quiet" aria-label={`Remove message ${at + 1}`} onClick={() => setTurns(turns.filter((_, index) => index !== at))}>
                  ×
                </button>
              )}
            </div>
          ))}
          <button
            type="button"
            class="quiet"
            onClick={() => setTurns([...turns, { role: turns[turns.length - 1]?.role === "user" ? "assistant" : "user", content: "" }])}
          >
            Add a message
          </button>
        </div>
      )}
      <div class="live-options">
        <label class="field">
          Explain
          <input type="text" dir="auto" value={target} placeholder="the likeliest token" onInput={(event) => {
              setTarget(event.currentTarget.value);
              if (event.currentTarget.value === "") setContrast("");
            }} />
        </label>
        <label class="field">
          rather than
          <input
            type="text"
            dir="auto"
            value={contrast}
            placeholder="nothing"
            disabled={!target}
            onInput={(event) => setContrast(event.currentTarget.value)}
          />
        </label>
        {live.asks.includes("answer") && (
          <label class="field narrow">
            Answer tokens
            <input
              type="number"
              min="0"
              max={mostTokens}
              value={tokens}
              onInput={(event) => setTokens(Math.max(0, Math.min(mostTokens, Math.floor(event.currentTarget.valueAsNumber || 0))))}
            />
          </label>
        )}
        <label class="check">
          <input type="checkbox" checked={latent} onChange={(event) => setLatent(event.currentTarget.checked)} />
          with routes
        </label>
        <label class="check">
          <input type="checkbox" checked={account} onChange={(event) => setAccount(event.currentTarget.checked)} />
          with account
        </label>
        <button type="submit" class="main" disabled={!canRun}>
          Explain
        </button>
      </div>
      {length > most && (
        <p class="notice error" role="alert">
          The text has {counted(length, "character")}, and this server takes {most.toLocaleString("en")}. Shorten it, or start the server
          with a larger limit.
        </p>
      )}
      <Progress live={live} />
      {problem.value !== null && (
        <p class="notice error" role="alert">
          {problem.value}
        </p>
      )}
      {candidates.value.length > 0 && (
        <div class="candidates">
          <h3>What the model would say next</h3>
          <ul>
            {candidates.value.map((one) => (
              <li key={one.id}>
                <button
                  type="button"
                  disabled={busy}
                  title={`explain ${tokenName(one.token)}`}
                  onClick={() => {
                    setTarget(one.token);
                    setContrast("");
                    void run(live, { ...(asked.value ?? ask({})), target: `id:${one.id}`, contrast: null, answer_tokens: 0 });
                  }}
                >
                  <bdi>{tokenName(one.token)}</bdi> <small>{percent(one.probability)}</small>
                </button>
                {first !== `id:${one.id}` && (
                  <button
                    type="button"
                    class="quiet"
                    disabled={busy}
                    aria-label={`contrast with ${tokenName(one.token)}`}
                    onClick={() => {
                      if (!target) setTarget(candidates.value[0]!.token);
                      setContrast(one.token);
                      void run(live, { ...(asked.value ?? ask({})), target: null, contrast: [first, `id:${one.id}`], answer_tokens: 0 });
                    }}
                  >
                    contrast
                  </button>
                )}
              </li>
            ))}
          </ul>
        </div>
      )}
    </form>
  );
}

function Progress({ live }: { live: Live }) {
  const now = running.value;
  if (now === null) return null;
  const job = now.job;
  const said =
    job === null || job.state === "waiting"
      ? job && job.ahead > 0
        ? `Waiting: ${counted(job.ahead, "run")} ahead`
        : "Waiting for the model"
      : job.stage || "Running";
  return (
    <div class="progress" role="status">
      <span>{said}</span>
      {job?.share == null ? <progress aria-label={said} /> : <progress aria-label={said} value={job.share} max={1} />}
      <button type="button" class="quiet" onClick={() => void cancel(live, now.id).catch((error: Error) => (problem.value = error.message))}>
        Cancel
      </button>
    </div>
  );
}

/** The rule table of a live page; another one runs the last ask again. */
export function LiveFormRules({ live }: { live: Live }) {
  const id = useId();
  const now = rules.value ?? live.tables[0]?.name ?? "";
  return (
    <div class="choice">
      <label for={id}>Rules</label>
      <select
        id={id}
        value={now}
        title={live.tables.find((table) => table.name === now)?.summary}
        disabled={running.value !== null}
        onChange={(event) => runAgain(live, event.currentTarget.value)}
      >
        {live.tables.map((table) => (
          <option key={table.name} value={table.name}>
            {table.name}
          </option>
        ))}
      </select>
    </div>
  );
}
