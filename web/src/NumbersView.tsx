// Numbers with names: a bar to the left or right of the middle for each.
import { SCALES } from "./colour";
import type { NumbersPart } from "./payload";
import { type ShownPart, isBeyond } from "./shown";
import { theme } from "./state";
import { side, signed } from "./words";

const MOST = 200;

export function NumbersView({ shown }: { shown: ShownPart }) {
  const part = shown.part as NumbersPart;
  const order = Array.from(shown.values.keys());
  if (order.length > 40) order.sort((a, b) => Math.abs(shown.values[b]!) - Math.abs(shown.values[a]!));
  const weaker = Math.max(0, order.length - MOST) + (part.left_out ?? 0);
  return (
    <>
      <table class="bars">
        <caption class="hidden">{part.name}: relevance of each number</caption>
        <thead class="hidden">
          <tr>
            <th scope="col">name</th>
            <th scope="col">relevance</th>
            <th scope="col">side</th>
            <th scope="col">bar</th>
          </tr>
        </thead>
        <tbody>
          {order.slice(0, MOST).map((at) => (
            <BarRow key={at} name={part.names[at] ?? `number ${at}`} value={shown.values[at]!} share={shown.scaled.shares[at]!} beyond={isBeyond(shown, at)} />
          ))}
        </tbody>
      </table>
      {weaker > 0 && <p class="said">and {weaker.toLocaleString("en")} weaker ones</p>}
    </>
  );
}

function BarRow({ name, value, share, beyond }: { name: string; value: number; share: number; beyond: boolean }) {
  const colours = SCALES[theme.value];
  const width = 50 * Math.min(1, Math.abs(share));
  return (
    <tr>
      <th scope="row">
        <bdi>{name}</bdi>
      </th>
      <td class="number">{signed(value)}</td>
      <td class="faint">{side(value)}</td>
      <td class="track middle" aria-hidden="true">
        <i
          class={`${value < 0 ? "negative" : ""}${beyond ? " double" : ""}`}
          style={{ left: `${value < 0 ? 50 - width : 50}%`, width: `${width}%`, background: value < 0 ? colours.negative : colours.positive }}
        />
      </td>
    </tr>
  );
}
