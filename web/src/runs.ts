// Questions of a live page: what was asked for each result, and what is changed inside the model for it.
import { computed, signal } from "@preact/signals";
import type { Live, Part, Result, Span } from "./payload";
import { type Ask, type Candidate, type Job, ServerError, follow, start } from "./server";
import { add, current, pinned, results, show, unpin, view } from "./state";
import { type Change, changed, changesOf, steerOf } from "./steering";
import { sentence } from "./words";

export interface Asked {
  ask: Ask;
  /** The same question of the model as it is. */
  plain: Ask;
  candidates: Candidate[];
  /** What the model says as it is, where it was changed. */
  before: Candidate[] | null;
  /** At how many tokens of the text what the model predicts there can be asked. */
  positions: number;
  /** Whether what it predicts there is the next token. */
  predictsNext: boolean;
}

export const running = signal<{ id: string; job: Job | null } | null>(null);
export const problem = signal<string | null>(null);
export const rules = signal<string | null>(null);
const asked = signal<ReadonlyMap<string, Asked>>(new Map());
const last = signal<Asked | null>(null);

/** What was asked for the result that is shown. */
export const shownAsk = computed(() => (view.value === null ? null : (asked.value.get(view.value.result.id) ?? null)));

/** What was asked for it, else what was asked last. */
export const lastAsk = computed(() => shownAsk.value ?? last.value);

/** Runs an ask to its end, and shows its result. */
export async function run(live: Live, ask: Ask, plain: Ask = ask): Promise<void> {
  if (running.value !== null) return;
  problem.value = null;
  running.value = { id: "", job: null };
  try {
    const { job } = await start(live, ask);
    running.value = { id: job, job: null };
    const end = await follow(live, job, (seen) => (running.value = { id: job, job: seen }));
    if (end.state === "failed") problem.value = end.error?.message ? sentence(end.error.message) : "The run failed, and the server did not say why.";
    if (end.state === "done" && end.result) {
      const [candidates, before] = [end.candidates ?? [], end.before ?? null];
      last.value = { ask, plain, candidates, before, positions: end.positions ?? 0, predictsNext: end.predicts_next ?? false };
      asked.value = new Map(asked.value).set(add(end.result), last.value);
    }
  } catch (error) {
    problem.value = error instanceof ServerError ? error.message : `The answer cannot be drawn: ${(error as Error).message}.`;
  } finally {
    running.value = null;
  }
}

/** Runs the last ask again under another table. */
export function runAgain(live: Live, table: string): void {
  rules.value = table;
  const found = lastAsk.value;
  if (found !== null && running.value === null) void run(live, { ...found.ask, rules: table }, { ...found.plain, rules: table });
}

/** Explains what is shown, or `fallback`, with one more change inside the model, beside what it was without any. */
export function steer(live: Live, change: Change, fallback?: Ask): void {
  const found = shownAsk.value;
  const plain = found?.plain ?? fallback;
  if (plain === undefined || running.value !== null) return;
  const before = changesOf(found?.ask.steer);
  if (before.length === 0 && found !== null && pinned.value === null) pinned.value = { id: view.value!.result.id, chosen: view.value!.chosen };
  runSteered(live, found?.ask ?? plain, plain, changed(before, change));
}

/** Takes one change back, or all of them. */
export function undo(live: Live, change: Change | null): void {
  const found = shownAsk.value;
  if (found === null || running.value !== null) return;
  const left = change === null ? [] : changesOf(found.ask.steer).filter((one) => one.place !== change.place || one.unit !== change.unit);
  runSteered(live, found.ask, found.plain, left);
}

function runSteered(live: Live, ask: Ask, plain: Ask, changes: Change[]): void {
  const wanted = changes.length === 0 ? plain : { ...sameNumber(ask), steer: steerOf(changes) };
  runOnce(live, wanted, plain);
}

/** Runs an ask, or shows its result where it was run before. */
function runOnce(live: Live, wanted: Ask, plain: Ask): void {
  const known = results.value.find((one) => JSON.stringify(asked.value.get(one.id)?.ask) === JSON.stringify(wanted));
  if (known === undefined) {
    void run(live, wanted, plain);
    return;
  }
  if (pinned.value?.id === known.id) unpin();
  show(known);
}

/** The ask with the number that it explained named, so that the changed model is asked for the same one. */
function sameNumber(ask: Ask): Ask {
  const found = shownAsk.value;
  const number = view.value?.result.numbers[0];
  const best = found?.candidates[0];
  if (ask.target !== null || ask.contrast !== null || ask.answer_tokens > 0 || best === undefined || number === undefined) return ask;
  const same = Math.abs(best.logit - number.value) <= 1e-3 * Math.max(1, Math.abs(best.logit));
  return same ? { ...ask, target: `id:${best.id}` } : ask;
}

/** Whether tokens of this part have predictions that can be asked for: it is the text of a question of this page. */
export function canAskIn(result: Result, part: Part): boolean {
  const texts = (result.parts ?? []).filter((one) => one.kind === "text");
  return current.value === result.id && texts[0] === part && (asked.value.get(result.id)?.positions ?? 0) > 0;
}

/** Whether what the model predicts at a token of this result is the next token. */
export function predictsNextIn(result: Result): boolean {
  return asked.value.get(result.id)?.predictsNext ?? false;
}

/** The position of the prediction at a span of tokens, the last of them where the next token is predicted; null where there
 * is none, or another question runs. */
export function positionAt(result: Result, part: Part, [start, end]: Span): number | null {
  if (running.value !== null || !canAskIn(result, part)) return null;
  const position = predictsNextIn(result) ? end - 1 : start;
  return position < asked.value.get(result.id)!.positions ? position : null;
}

/** Explains what the model predicts at another position of the text of a result. */
export function explainAt(live: Live, result: Result, position: number): void {
  const found = asked.value.get(result.id);
  if (found === undefined || running.value !== null) return;
  const there = { position, target: null, contrast: null, answer_tokens: 0 };
  runOnce(live, { ...found.ask, ...there }, { ...found.plain, ...there });
}

/** Whether units of this result can be changed: it was asked here, and it is the one that is worked in. */
export function canSteer(result: Result): boolean {
  return running.value === null && current.value === result.id && asked.value.has(result.id);
}
