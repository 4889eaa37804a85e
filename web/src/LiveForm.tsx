// A live page: a text or a chat, what to explain in it, and how far the model is.
import { useId, useState } from "preact/hooks";
import { Candidates } from "./Candidates";
import type { Live } from "./payload";
import { Picture } from "./Picture";
import { problem, rules, run, runAgain, running, shownAsk } from "./runs";
import { type Ask, cancel } from "./server";
import { Steering } from "./Steering";
import { counted } from "./words";

type Turn = { role: string; content: string };

export function LiveForm({ live }: { live: Live }) {
  const id = useId();
  const looks = live.asks.includes("image");
  const reads = live.asks.includes("text");
  const [kind, setKind] = useState<"text" | "chat">(looks && live.asks.includes("chat") ? "chat" : "text");
  const [image, setImage] = useState<string | null>(null);
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
  const canAsk = (length > 0 || (!reads && image !== null)) && length <= most;
  const canRun = canAsk && !busy;

  const ask = (change: Partial<Ask>): Ask => ({
    kind: "explain",
    ...(!reads ? {} : kind === "text" ? { text } : { chat: turns.filter((turn) => turn.content !== "") }),
    ...(image === null ? {} : { image }),
    target: contrast && target ? null : target || null,
    contrast: contrast && target ? [target, contrast] : null,
    position: null,
    rules: table,
    answer_tokens: tokens,
    latent,
    account,
    ...change,
  });
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
      {looks && <Picture most={live.limits.picture ?? Infinity} image={image} onImage={setImage} />}
      {!reads ? null : kind === "text" ? (
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
          <input type="text" dir="auto" value={target} placeholder={reads ? "the likeliest token" : "the likeliest class"} onInput={(event) => {
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
          The text has {counted(length, "character")}, and this server takes {most.toLocaleString("en")}. Shorten it.
        </p>
      )}
      <Progress live={live} />
      {problem.value !== null && (
        <p class="notice error" role="alert">
          {problem.value}
        </p>
      )}
      <div class="answered">
        {shownAsk.value !== null && (
          <Candidates
            live={live}
            asked={shownAsk.value}
            onTarget={(token) => {
              setTarget(token);
              setContrast("");
            }}
            onContrast={(token, first) => {
              if (!target) setTarget(first);
              setContrast(token);
            }}
          />
        )}
        <Steering live={live} fallback={canAsk ? ask({}) : null} />
      </div>
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
      <button type="button" class="quiet" disabled={now.id === ""} onClick={() => void cancel(live, now.id).catch((error: Error) => (problem.value = error.message))}>
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
