// What the page remembers while it is open. Nothing is stored beyond that.
import { computed, signal } from "@preact/signals";
import { type Chosen, FIRST } from "./chosen";
import { type CircuitState, firstState } from "./circuit";
import type { Theme } from "./colour";
import { type Live, type Result, checkResult } from "./payload";
import type { Ends } from "./scale";
import { type View, panesOf } from "./shown";
import type { Muted, UnitKind } from "./units";

export interface Source {
  pane: number;
  part: number;
  place: number;
}

export const results = signal<Result[]>([]);
export const live = signal<Live | null>(null);
export const madeBy = signal("lxt_fx");
export const current = signal<string | null>(null);
const choices = signal<ReadonlyMap<string, Chosen>>(new Map());
export const pinned = signal<{ id: string; chosen: Chosen } | null>(null);

export const ends = signal<Ends>("robust");
export const unit = signal<UnitKind>("tokens");
export const muted = signal<Muted>({ first: false, last: false, special: false });
export const together = signal(false);
export const searched = signal("");
/** Whether a click on a token of a live text holds it, or explains what the model predicts there. */
export const clicks = signal<"hold" | "explain">("hold");
export const notice = signal<{ kind: "error" | "done"; text: string } | null>(null);

const circuits = signal<ReadonlyMap<string, CircuitState>>(new Map());

/** How many edges of a circuit are shown, and which of its nodes are pinned or named. */
export function circuitState(result: Result): CircuitState | null {
  return result.circuit ? (circuits.value.get(result.id) ?? firstState(result.circuit)) : null;
}

export function setCircuit(result: Result, change: Partial<CircuitState>): void {
  const now = circuitState(result);
  if (now !== null) circuits.value = new Map(circuits.value).set(result.id, { ...now, ...change });
}

/** The result with what a person made of it, to be opened again. */
export function asShown(result: Result): Result {
  return result.circuit ? { ...result, circuit: { ...result.circuit, state: circuitState(result) } } : result;
}

/** The source that is pointed at or has the focus, and that which stays when the pointer leaves. */
export const pointed = signal<Source | null>(null);
export const held = signal<Source | null>(null);
export const source = computed(() => pointed.value ?? held.value);

/** Holds a source, and releases it where it is held. */
export function hold(place: Source): void {
  const now = held.value;
  const same = now?.pane === place.pane && now.part === place.part && now.place === place.place;
  held.value = same ? null : place;
}

/** Whether this page is touched: a finger does not point, and has no keys. */
export const coarse = matchMedia("(pointer: coarse)").matches;

const dark = matchMedia("(prefers-color-scheme: dark)");
const system = signal<Theme>(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => (system.value = dark.matches ? "dark" : "light"));
const printing = signal(false);
addEventListener("beforeprint", () => (printing.value = true));
addEventListener("afterprint", () => (printing.value = false));
export const wantedTheme = signal<Theme | null>(null);
export const theme = computed<Theme>(() => (printing.value ? "light" : (wantedTheme.value ?? system.value)));

export const view = computed<View | null>(() => {
  const result = results.value.find((one) => one.id === current.value) ?? results.value[0];
  return result === undefined ? null : { result, chosen: choices.value.get(result.id) ?? FIRST };
});

export const panes = computed(() => {
  const views: View[] = [];
  const kept = results.value.find((one) => one.id === pinned.value?.id);
  if (kept !== undefined && pinned.value !== null) views.push({ result: kept, chosen: pinned.value.chosen });
  if (view.value !== null) views.push(view.value);
  return panesOf(views, { unit: unit.value, muted: muted.value, ends: ends.value, together: together.value });
});

/** The pane that is worked in: the second where two stand side by side. */
export const pane = computed(() => panes.value[panes.value.length - 1] ?? null);

export function choose(result: Result, chosen: Chosen): void {
  choices.value = new Map(choices.value).set(result.id, chosen);
  pointed.value = null;
}

export function show(result: Result): void {
  current.value = result.id;
  forget();
}

/** Adds a result, shows it, and returns its name; one with the same name takes another one. Throws an Error where it cannot
 * be drawn. */
export function add(result: Result): string {
  checkResult(result);
  const names = new Set(results.value.map((one) => one.id));
  let id = result.id || "result";
  for (let at = 2; names.has(id); at++) id = `${result.id}-${at}`;
  results.value = [...results.value, { ...result, id }];
  current.value = id;
  forget();
  return id;
}

export function remove(result: Result): void {
  results.value = results.value.filter((one) => one.id !== result.id);
  if (pinned.value?.id === result.id) pinned.value = null;
  if (current.value === result.id) current.value = results.value[results.value.length - 1]?.id ?? null;
  forget();
}

export function pin(): void {
  if (view.value !== null) pinned.value = { id: view.value.result.id, chosen: view.value.chosen };
  forget();
}

export function unpin(): void {
  pinned.value = null;
  forget();
}

/** Places have other numbers now. */
export function forget(): void {
  pointed.value = null;
  held.value = null;
}
