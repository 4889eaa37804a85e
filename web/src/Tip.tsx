// What a token has, beside the token.
import { useLayoutEffect, useRef } from "preact/hooks";
import { placeName } from "./shown";
import { coarse, held, panes, pointed } from "./state";
import { side, signed } from "./words";

export function Tip() {
  const box = useRef<HTMLDivElement>(null);
  const now = pointed.value ?? (coarse ? held.value : null); // a held token has no finger over it
  const part = now === null ? undefined : panes.value[now.pane]?.parts[now.part];
  useLayoutEffect(() => {
    if (now === null || box.current === null) return;
    const text = document.querySelectorAll(".pane")[now.pane]?.querySelectorAll(".part")[now.part];
    const at = text?.querySelector(`[data-at="${now.place}"]`)?.getClientRects()[0];
    if (at === undefined || at.bottom < 0 || at.top > innerHeight) {
      box.current.style.visibility = "hidden";
      return;
    }
    const { width, height } = box.current.getBoundingClientRect();
    const room = document.documentElement.clientWidth;
    const left = Math.max(8, Math.min(room - width - 8, at.left + at.width / 2 - width / 2));
    const [above, below] = [at.top - height - 6, at.bottom + 8];
    const isBelow = above < 4 || (coarse && below + height < innerHeight); // a finger covers no more of what is below
    const top = scrollY + (isBelow ? below : above);
    box.current.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
    box.current.style.visibility = "visible";
  });
  if (now === null || part === undefined || part.part.kind !== "text" || now.place >= part.values.length) return null;
  const value = part.values[now.place]!;
  return (
    <div class="tip" ref={box} aria-hidden="true">
      <bdi>{placeName(part, now.place)}</bdi> <strong>{signed(value)}</strong> {side(value)}
      {!part.counts[now.place] && <small> left out</small>}
    </div>
  );
}
