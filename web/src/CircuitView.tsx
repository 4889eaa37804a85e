// The picture of a circuit: layers upwards, tokens or heads across, edges by sign and weight.
import { useEffect, useId, useMemo, useRef, useState } from "preact/hooks";
import {
  type CircuitState, type Kept, type Layout, type Line, STEPS, curve, edgesAt, keptOf, layoutOf, nodeTowards, stepOf,
} from "./circuit";
import { type Circuit, type CircuitNode, type Result, numbersOf } from "./payload";
import { Part, Pinned, nameOf } from "./CircuitPart";
import { circuitState, setCircuit } from "./state";
import { amount, counted, tokenName } from "./words";

const [LABELS, BEHIND, BELOW, MOST_LABELS] = [74, 44, 78, 120];

export function CircuitView({ result, circuit }: { result: Result; circuit: Circuit }) {
  const id = useId();
  const state = circuitState(result)!;
  const [onPath, setOnPath] = useState(true);
  const [chosen, setChosen] = useState<number | null>(null);
  const [pointed, setPointed] = useState<number | null>(null);
  const [width, setWidth] = useState(800);
  const room = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => setWidth(Math.floor(entry!.contentRect.width)));
    watch.observe(room.current!);
    room.current!.scrollLeft = room.current!.scrollWidth; // where the answer is read
    return () => watch.disconnect();
  }, []);
  const kept = useMemo(() => keptOf(circuit, state, onPath, chosen), [circuit, state, onPath, chosen]);
  const layout = useMemo(() => layoutOf(circuit, kept.nodes, Math.max(0, width - LABELS - BEHIND)), [circuit, kept, width]);
  const set = (change: Partial<CircuitState>) => setCircuit(result, change);
  const pin = (node: number) => {
    const name = circuit.nodes[node]!.id;
    set({ pinned: state.pinned.includes(name) ? state.pinned.filter((one) => one !== name) : [...state.pinned, name] });
  };
  const shown = pointed ?? chosen;
  const edges = circuit.source.length;
  const differ = (circuit.instead ?? []).some((token, at) => token !== circuit.columns[at]);
  return (
    <div class="columns circuit">
      <section class="panes" aria-label="Circuit">
        <p class="lead">{circuit.said}</p>
        <p class="said">
          An edge says how much of the explained number is due to what its lower end writes in the clean text and not in the
          corrupted one, as far as it goes through its upper end. <span class="for-word">For</span> is solid,{" "}
          <span class="against-word">against</span> dashed. Circles are heads (3.5 is head 5 of layer 3), squares MLPs.
          {differ && " In brackets stands the token of the corrupted text."}
        </p>
        <div class="circuit-options">
          <label class="range" for={`${id}-edges`}>
            Edges
          </label>
          <input
            id={`${id}-edges`}
            type="range"
            min="0"
            max={STEPS}
            value={stepOf(state.edges, edges)}
            aria-valuetext={`the ${state.edges} strongest edges`}
            onInput={(event) => set({ edges: edgesAt(Number(event.currentTarget.value), edges) })}
          />
          <output for={`${id}-edges`}>
            the strongest {state.edges.toLocaleString("en")} of {edges.toLocaleString("en")}
            {circuit.total > edges && <small> in this page, of {circuit.total.toLocaleString("en")} that are not 0</small>}
          </output>
          <label class="check">
            <input type="checkbox" checked={onPath} onChange={(event) => setOnPath(event.currentTarget.checked)} />
            only those on a path from the embedding to the logits
          </label>
        </div>
        <div class="frame scrolls circuit-frame" ref={room} dir="ltr" tabIndex={0} role="region" aria-label="Picture of the circuit">
          <div class="circuit-inside">
            <Rows circuit={circuit} layout={layout} />
            <Picture {...{ circuit, state, kept, layout, shown, chosen, pin }} choose={setChosen} point={setPointed} />
          </div>
        </div>
        <p class="said readout" aria-live="polite">
          {shown === null
            ? `${counted(new Set(kept.lines.map((line) => line.edge)).size, "edge")} between ${counted(kept.nodes.length, "part")} in the picture; the widest is ${amount(Math.abs(numbersOf(circuit.weights)[0] ?? 0))}.`
            : `${nameOf(circuit, state, shown)}: ${degrees(kept.lines, shown)}${state.pinned.includes(circuit.nodes[shown]!.id) ? "; pinned" : ""}.`}
        </p>
      </section>
      <aside class="sources" aria-label="Parts">
        {chosen === null && pointed === null ? (
          <div class="source hint">
            <p>
              Point at a part, or move to one with the arrow keys, to see what it reads and hands on. A click or Enter keeps it
              here; P pins it. What is pinned or named stays in the picture, and in the JSON of Export.
            </p>
          </div>
        ) : (
          <Part {...{ circuit, state, set, pin }} node={shown!} isChosen={shown === chosen} choose={setChosen} />
        )}
        {state.pinned.length > 0 && <Pinned {...{ circuit, state, pin }} choose={setChosen} />}
      </aside>
    </div>
  );
}

function degrees(lines: Line[], node: number): string {
  const into = lines.filter((line) => line.target === node).length;
  const out = lines.filter((line) => line.source === node).length;
  return `${counted(into, "edge")} in, ${out} out`;
}

/** The names of the layers, which stay in sight where the picture is scrolled. */
function Rows({ circuit, layout }: { circuit: Circuit; layout: Layout }) {
  const every = layout.down >= 13 ? 1 : 2;
  return (
    <svg class="circuit-rows" width={LABELS} height={layout.height} aria-hidden="true">
      {circuit.rows.map((row, at) =>
        at % every === 0 || at === circuit.rows.length - 1 ? (
          <text key={at} x={LABELS - 8} y={(circuit.rows.length - 1 - at + 0.5) * layout.down} text-anchor="end" dominant-baseline="middle">
            {/^\d+$/.test(row) ? (at === 1 ? "layer 0" : row) : row}
          </text>
        ) : null,
      )}
    </svg>
  );
}

interface Drawn {
  circuit: Circuit;
  state: CircuitState;
  kept: Kept;
  layout: Layout;
  shown: number | null;
  chosen: number | null;
  choose: (node: number | null) => void;
  point: (node: number | null) => void;
  pin: (node: number) => void;
}

function Picture({ circuit, state, kept, layout, shown, chosen, choose, point, pin }: Drawn) {
  const picture = useRef<SVGSVGElement>(null);
  const [focused, setFocused] = useState<number | null>(null);
  const entry = focused !== null && layout.places.has(focused) ? focused : (chosen ?? kept.nodes[kept.nodes.length - 1] ?? null);
  const weights = numbersOf(circuit.weights);
  const largest = Math.abs(weights[0] ?? 1) || 1;
  const key = (event: KeyboardEvent, node: number) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.startsWith("Arrow")) {
      const next = nodeTowards(layout, node, event.key);
      picture.current!.querySelector<SVGGElement>(`[data-node="${next}"]`)?.focus();
    } else if (event.key === "Enter" || event.key === " ") choose(chosen === node ? null : node);
    else if (event.key === "p" || event.key === "P") pin(node);
    else if (event.key === "Escape") choose(null);
    else return;
    event.preventDefault();
  };
  const lit = (line: Line) => shown === null || line.source === shown || line.target === shown;
  const beside = new Set(kept.lines.filter(lit).flatMap((line) => [line.source, line.target]));
  const lines = [...kept.lines].sort((a, b) => Number(shown !== null && lit(a)) - Number(shown !== null && lit(b)) || b.edge - a.edge);
  const isLabelled = kept.nodes.length <= MOST_LABELS;
  return (
    <svg
      ref={picture}
      class={`circuit-picture${shown === null ? "" : " looks"}`}
      width={layout.width + BEHIND}
      height={layout.height + BELOW}
      role="group"
      aria-label={`Circuit of ${counted(kept.nodes.length, "part")}; arrow keys move, Enter keeps, P pins, Escape releases`}
    >
      <Grid circuit={circuit} layout={layout} column={shown === null ? null : circuit.nodes[shown]!.column} />
      <g fill="none">
        {lines.map((line) => {
          const weight = weights[line.edge]!;
          const share = Math.abs(weight) / largest;
          return (
            <path
              key={`${line.edge}/${line.target}`}
              class={`edge ${weight < 0 ? "against" : "for"}${lit(line) ? "" : " dim"}`}
              d={curve(layout.places.get(line.source)!, layout.places.get(line.target)!, layout)}
              stroke-width={(0.8 + 5.2 * share).toFixed(2)}
              stroke-opacity={lit(line) ? (shown === null ? 0.35 + 0.6 * Math.sqrt(share) : 0.95).toFixed(2) : "0.07"}
            />
          );
        })}
      </g>
      {kept.nodes.map((at) => {
        const node = circuit.nodes[at]!;
        const { x, y, side } = layout.places.get(at)!;
        const given = state.names[node.id];
        const isPinned = state.pinned.includes(node.id);
        const isHere = at === shown;
        const label = given ?? (isHere || isPinned || (isLabelled && side !== 0 && node.kind !== "embedding") ? node.short : "");
        return (
          <g
            key={node.id}
            data-node={at}
            class={`node ${node.kind}${isPinned ? " pinned" : ""}${at === chosen ? " chosen" : ""}${isHere || beside.has(at) ? "" : " dim"}`}
            transform={`translate(${x.toFixed(1)} ${y.toFixed(1)})`}
            tabIndex={at === entry ? 0 : -1}
            role="button"
            aria-pressed={at === chosen}
            aria-label={`${nameOf(circuit, state, at)}, ${degrees(kept.lines, at)}${isPinned ? ", pinned" : ""}`}
            onClick={() => choose(at === chosen ? null : at)}
            onPointerEnter={(event) => event.pointerType !== "touch" && point(at)}
            onPointerLeave={() => point(null)}
            onFocus={(event) => {
              setFocused(at);
              if (event.currentTarget.matches(":focus-visible")) point(at);
            }}
            onBlur={() => point(null)}
            onKeyDown={(event) => key(event, at)}
          >
            <circle class="touch" r="11" />
            <Shape kind={node.kind} />
            {label !== "" && (
              <text x={8 * side} y={side === 0 ? 17 : 0} text-anchor={(["end", "middle", "start"] as const)[side + 1]} dominant-baseline="central">
                {label}
              </text>
            )}
          </g>
        );
      })}
    </svg>
  );
}

function Shape({ kind }: { kind: CircuitNode["kind"] }) {
  if (kind === "mlp") return <rect class="shape" x="-5" y="-5" width="10" height="10" rx="1.5" />;
  if (kind === "embedding" || kind === "logits") return <path class="shape" d="M0-6.5 6.5 0 0 6.5-6.5 0z" />;
  if (kind === "features") return <path class="shape" d="M0-6 6 5H-6z" />;
  return <circle class="shape" r="5" />;
}

/** The lines between layers and columns, and the names of the columns below. */
function Grid({ circuit, layout, column }: { circuit: Circuit; layout: Layout; column: number | null }) {
  return (
    <>
      <g class="circuit-grid">
        {circuit.rows.map((_, at) => (
          <line key={at} x1="0" x2={layout.width} y1={(at + 1) * layout.down} y2={(at + 1) * layout.down} />
        ))}
      </g>
      {circuit.columns.map((name, at) => {
        const other = circuit.instead?.[at];
        const differs = other !== undefined && other !== name;
        const said = circuit.by === "token" ? tokenName(name) : name;
        return (
          <text
            key={at}
            class={`circuit-column${differs ? " differs" : ""}${at === column ? " here" : ""}`}
            text-anchor="end"
            transform={`translate(${(layout.centres[at]! + 4).toFixed(1)} ${layout.height + 14}) rotate(-52)`}
          >
            {name === "" ? "" : `${short(said)}${differs ? ` (${short(tokenName(other))})` : ""}`}
          </text>
        );
      })}
    </>
  );
}

function short(name: string): string {
  const letters = [...name];
  return letters.length > 11 ? `${letters.slice(0, 10).join("")}…` : name;
}
