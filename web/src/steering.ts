// What is changed inside a model while it is explained: units that are switched off, scaled or set.
import type { Steered } from "./payload";

/** One unit of a place, or all of them (null), multiplied by a number or set to it. */
export interface Change {
  place: string;
  unit: number | null;
  by: "scale" | "value";
  amount: number;
}

interface Edit {
  units?: number[];
  scale?: number;
  value?: number;
}

/** As the server takes it: by place, one edit or several that follow one another. */
export type Steer = Record<string, Edit | Edit[]>;

/** Changes by place, units with the same change together. */
export function steerOf(changes: Change[]): Steer {
  const found = new Map<string, Edit[]>();
  for (const { place, unit, by, amount } of changes) {
    const edits = found.get(place) ?? [];
    const same = edits.find((edit) => edit.units !== undefined && edit[by] === amount);
    if (unit !== null && same !== undefined) same.units!.push(unit);
    else edits.push({ ...(unit === null ? {} : { units: [unit] }), [by]: amount });
    found.set(place, edits);
  }
  return Object.fromEntries([...found].map(([place, edits]) => [place, edits.length === 1 ? edits[0]! : edits]));
}

export function changesOf(steer: Steer | undefined): Change[] {
  return Object.entries(steer ?? {}).flatMap(([place, edits]) =>
    [edits].flat().flatMap((edit) => {
      const by = edit.scale === undefined ? "value" : "scale";
      return (edit.units ?? [null]).map((unit): Change => ({ place, unit, by, amount: edit[by]! }));
    }),
  );
}

/** The changes with one more; a unit that was changed before is changed anew. */
export function changed(changes: Change[], change: Change): Change[] {
  return [...changes.filter((one) => one.place !== change.place || one.unit !== change.unit), change];
}

/** "unit 17 of mlp.11.neurons off". */
export function changeSaid({ place, unit, by, amount }: Change): string {
  const what = unit === null ? `all of ${place}` : `${place.endsWith(".heads") ? "head" : "unit"} ${unit} of ${place}`;
  if (by === "value") return `${what} set to ${amount}`;
  return amount === 0 ? `${what} off` : `${what} times ${amount}`;
}

const MOST = 3;

/** What a result was steered by, in a few words; empty where it was not. */
export function steeredSaid(steered: Steered[] | undefined): string {
  const changes = (steered ?? []).flatMap(({ place, units, scale, value }) =>
    (units ?? [null]).map((unit): Change => ({ place, unit, by: scale === undefined ? "value" : "scale", amount: scale ?? value ?? 0 })),
  );
  if (changes.length === 0) return "";
  const rest = changes.length > MOST ? ` and ${changes.length - MOST} more` : "";
  return `with ${changes.slice(0, MOST).map(changeSaid).join(", ")}${rest}`;
}
