// The places of a picture or a sound: pointing at one shows it, a click or Enter holds it, keys move.
import { useState } from "preact/hooks";
import { type ShownPart, placeName } from "./shown";
import { type Source, held, hold, pointed, source } from "./state";
import { signed, side } from "./words";

interface Places {
  /** The place that is shown: the one that is pointed at, else the one that is held. */
  here: number | null;
  held: number | null;
  /** What was reached by a key, for a screen reader. */
  said: string;
  handlers: {
    onPointerMove: (event: PointerEvent) => void;
    onPointerLeave: () => void;
    onBlur: () => void;
    onClick: (event: MouseEvent) => void;
    onKeyDown: (event: KeyboardEvent) => void;
  };
}

/** `placeAt` is where a pointer is, null outside; `moved` where a key leads from a place (null: none yet), null for no such key. */
export function usePlaces(
  shown: ShownPart,
  paneAt: number,
  placeAt: (event: MouseEvent) => number | null,
  moved: (key: string, from: number | null) => number | null,
): Places {
  const [byKey, setByKey] = useState(false);
  const own = (one: Source | null) => (one?.pane === paneAt && one.part === shown.index && one.place < shown.values.length ? one.place : null);
  const at = (place: number): Source => ({ pane: paneAt, part: shown.index, place });
  const [here, fixed] = [own(source.value), own(held.value)];
  const point = (place: number | null, key: boolean) => {
    pointed.value = place === null ? null : at(place);
    setByKey(key);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const to = moved(event.key, here);
    if (to !== null) point(to, true);
    else if ((event.key === "Enter" || event.key === " ") && here !== null) {
      hold(at(here));
      point(here, true);
    } else if (event.key === "Escape" && fixed !== null) held.value = null;
    else return;
    event.preventDefault();
  };
  const onClick = (event: MouseEvent) => {
    const place = placeAt(event);
    if (place !== null) hold(at(place));
  };
  const value = here === null ? 0 : shown.values[here]!;
  return {
    here,
    held: fixed,
    said: byKey && here !== null ? `${placeName(shown, here)}: ${signed(value)} ${side(value)}${here === fixed ? ", held" : ""}` : "",
    handlers: {
      onPointerMove: (event) => point(placeAt(event), false),
      onPointerLeave: () => point(null, false),
      onBlur: () => point(null, false),
      onClick,
      onKeyDown,
    },
  };
}
