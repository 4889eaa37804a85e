// The colour bar, and in words where it ends and what lies beyond it.
import { gradient } from "./colour";
import type { ShownPart } from "./shown";
import { ends, theme } from "./state";
import { amount, counted, signed } from "./words";

const NAMES: Record<string, [string, string?]> = {
  text: ["token"],
  image: ["square"],
  sound: ["bar"],
  numbers: ["number"],
};

export function Legend({ shown, unit, shared }: { shown: ShownPart; unit: string; shared: string }) {
  const end = amount(shown.scaled.end);
  const rank = ends.value === "rank";
  return (
    <div class="legend">
      <div class="legend-bar" dir="ltr">
        <span class="sign against-word">against</span>
        <div class="bar" style={{ background: gradient(theme.value) }} role="img" aria-label="colours from blue, against, to red, for" />
        <span class="sign for-word">for</span>
        <div class="ticks" aria-hidden="true">
          <span>{rank ? "strongest" : `−${end}`}</span>
          <span>0</span>
          <span>{rank ? "strongest" : `+${end}`}</span>
        </div>
      </div>
      <p class="said">
        {scaleSentence(shown, unit)} {shared} {leftOutSentence(shown)}
      </p>
    </div>
  );
}

export function scaleSentence({ scaled, part }: ShownPart, unit: string): string {
  const name = part.kind === "text" ? unit : NAMES[part.kind]![0];
  if (scaled.largest === 0) return "No relevance is shown here.";
  if (ends.value === "rank") return `Colour is the rank of the relevance among the ${name}s, not its size.`;
  const end = `The scale ends at ${amount(scaled.end)}`;
  if (ends.value === "max") return `${end}, the largest relevance.`;
  if (scaled.beyond === 0) return `${end}; nothing goes beyond it.`;
  const goes = scaled.beyond === 1 ? "goes" : "go";
  const mark = part.kind === "sound" || part.kind === "numbers" ? "a double end" : "a double edge";
  return `${end}; ${counted(scaled.beyond, name)} ${goes} beyond it (up to ${amount(scaled.largest)}, with ${mark}).`;
}

function leftOutSentence({ leftOut, leftOutCount }: ShownPart): string {
  if (leftOutCount === 0) return "";
  return `${counted(leftOutCount, "token")} left out of the colours (hatched), together ${signed(leftOut)}.`;
}
