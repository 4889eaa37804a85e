// The server of a live page: jobs that run one behind the other. Errors say what happened and what to do.
import type { Live, Result } from "./payload";
import type { Steer } from "./steering";
import { sentence } from "./words";

export interface Ask {
  kind: "explain";
  text?: string;
  chat?: { role: string; content: string }[];
  target: string | null;
  contrast: [string, string] | null;
  position: number | null;
  rules: string;
  answer_tokens: number;
  latent: boolean;
  account: boolean;
  /** A picture as a data URL. */
  image?: string;
  steer?: Steer;
}

export interface Candidate {
  token: string;
  id: number;
  logit: number;
  probability: number;
}

export interface Job {
  state: "waiting" | "running" | "done" | "failed" | "cancelled";
  ahead: number;
  stage: string;
  share: number | null;
  result: Result | null;
  error: { kind: string; message: string } | null;
  candidates: Candidate[] | null;
  /** The same entries of the model as it is, where it was changed. */
  before?: Candidate[] | null;
  /** At how many tokens of the text what the model predicts there can be asked. */
  positions?: number | null;
  /** Whether what it predicts there is the next token. */
  predicts_next?: boolean | null;
}

export class ServerError extends Error {
  constructor(
    message: string,
    readonly kind: string,
  ) {
    super(message);
  }
}

const PAUSE = 300;

/** The token of the page's address, as `?token=` or `#token=`. */
function tokenOf(address: { search: string; hash: string }): string {
  return new URLSearchParams(address.search).get("token") ?? new URLSearchParams(address.hash.replace(/^#/, "")).get("token") ?? "";
}

async function call(live: Live, method: string, path: string, body?: string): Promise<unknown> {
  let answer: Response;
  try {
    answer = await fetch(`${live.address}${path}`, {
      method,
      headers: { "X-LXT-FX-Token": tokenOf(location), ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
      ...(body === undefined ? {} : { body }),
      cache: "no-store",
    });
  } catch {
    throw new ServerError("The server does not answer. See whether lxt-fx serve still runs; a new start has a new address.", "network");
  }
  const found: unknown = await answer.json().catch(() => null);
  if (!answer.ok) {
    const error = found as { kind?: string; message?: string } | null;
    const said = error?.message ? sentence(error.message) : `The server refused with status ${answer.status}. See what it says in its terminal.`;
    throw new ServerError(said, error?.kind ?? String(answer.status));
  }
  return found;
}

/** Starts a job. */
export async function start(live: Live, ask: Ask): Promise<{ job: string; ahead: number }> {
  return (await call(live, "POST", "/api/jobs", JSON.stringify(ask))) as { job: string; ahead: number };
}

export async function cancel(live: Live, job: string): Promise<void> {
  await call(live, "DELETE", `/api/jobs/${encodeURIComponent(job)}`);
}

/** A saved explanation, or each of a saved list, as a result of this page. */
export async function open(live: Live, text: string): Promise<Result[]> {
  return ((await call(live, "POST", "/api/open", text)) as { results: Result[] }).results;
}

/** Asks for a job until it ends; `seen` gets each answer. */
export async function follow(live: Live, job: string, seen: (job: Job) => void): Promise<Job> {
  for (;;) {
    const found = (await call(live, "GET", `/api/jobs/${encodeURIComponent(job)}`)) as Job;
    seen(found);
    if (found.state !== "waiting" && found.state !== "running") return found;
    await new Promise((done) => setTimeout(done, PAUSE));
  }
}
