// Beside the picture of a circuit: one part, what it reads and hands on, its name; and what is pinned.
import { useId } from "preact/hooks";
import { type CircuitState, neighbours } from "./circuit";
import type { Circuit, CircuitNode } from "./payload";
import { signed, tokenName } from "./words";

const [MOST, LONGEST_NAME] = [6, 60];
const THROUGH: Record<string, string> = { q: "queries", k: "keys", v: "values" };

/** The name that a person gave to a node, or what it is; with its token. */
export function nameOf(circuit: Circuit, state: CircuitState, at: number): string {
  const node = circuit.nodes[at]!;
  const given = state.names[node.id];
  return `${given ? `${given} (${node.name})` : node.name}${whereOf(circuit, node)}`;
}

function whereOf(circuit: Circuit, node: CircuitNode): string {
  return circuit.by === "token" ? ` at “${tokenName(circuit.columns[node.column] ?? "")}”, position ${node.column}` : "";
}

interface Told {
  circuit: Circuit;
  state: CircuitState;
  node: number;
  isChosen: boolean;
  set: (change: Partial<CircuitState>) => void;
  choose: (node: number | null) => void;
  pin: (node: number) => void;
}

/** One part: what it reads, what it hands on, its name. */
export function Part({ circuit, state, node: at, isChosen, set, choose, pin }: Told) {
  const id = useId();
  const node = circuit.nodes[at]!;
  const isPinned = state.pinned.includes(node.id);
  const rename = (name: string) => {
    const { [node.id]: _, ...others } = state.names;
    const pinned = state.pinned.includes(node.id) ? state.pinned : [...state.pinned, node.id];
    set(name === "" ? { names: others } : { names: { ...others, [node.id]: name }, pinned });
  };
  const sides = [["into", "It reads"], ["out", "It hands on to"]] as const;
  return (
    <div class="source">
      <p class="source-name">
        <span>{state.names[node.id] ?? node.name}</span>
      </p>
      <p class="said">
        {state.names[node.id] ? `${node.name}${whereOf(circuit, node)}` : whereOf(circuit, node).trim()}
        {circuit.instead && circuit.instead[node.column] !== circuit.columns[node.column]
          ? ` (“${tokenName(circuit.instead[node.column] ?? "")}” in the corrupted text)`
          : ""}
      </p>
      {isChosen && (
        <div class="circuit-part">
          <button class="button" aria-pressed={isPinned} onClick={() => pin(at)}>
            {isPinned ? "Unpin" : "Pin"}
          </button>
          <label class="field" for={id}>
            Name
          </label>
          <input id={id} type="text" maxLength={LONGEST_NAME} value={state.names[node.id] ?? ""} onInput={(event) => rename(event.currentTarget.value.trimStart())} />
        </div>
      )}
      {sides.map(([side, title]) => {
        const found = neighbours(circuit, at, side, MOST);
        return found.length === 0 ? null : (
          <section key={side}>
            <h2>{title}</h2>
            <ol class="circuit-edges">
              {found.map(({ node: other, edge, weight }) => (
                <li key={`${edge}/${other}`}>
                  <button onClick={() => choose(other)}>
                    <bdi>{otherName(circuit, state, other)}</bdi>
                    <span class={`number ${weight < 0 ? "negative" : "positive"}`}>{signed(weight)}</span>
                    {circuit.through[edge] && <small>{side === "into" ? "by its" : "into its"} {THROUGH[circuit.through[edge]!]}</small>}
                  </button>
                </li>
              ))}
            </ol>
          </section>
        );
      })}
    </div>
  );
}

function otherName(circuit: Circuit, state: CircuitState, at: number): string {
  const node = circuit.nodes[at]!;
  const token = circuit.by === "token" ? ` · ${tokenName(circuit.columns[node.column] ?? "")}` : "";
  return `${state.names[node.id] ?? node.name}${token}`;
}

export function Pinned({ circuit, state, pin, choose }: { circuit: Circuit; state: CircuitState; pin: (node: number) => void; choose: (node: number) => void }) {
  return (
    <section>
      <h2>Pinned</h2>
      <ul class="circuit-edges">
        {circuit.nodes.flatMap((node, at) =>
          state.pinned.includes(node.id)
            ? [
                <li key={node.id} class="circuit-pin">
                  <button onClick={() => choose(at)}>
                    <bdi>{otherName(circuit, state, at)}</bdi>
                  </button>
                  <button class="quiet" aria-label={`Unpin ${nameOf(circuit, state, at)}`} onClick={() => pin(at)}>
                    ×
                  </button>
                </li>,
              ]
            : [],
        )}
      </ul>
    </section>
  );
}
