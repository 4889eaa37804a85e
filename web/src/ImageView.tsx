// A picture with its relevance: squares of colour over it, as strong as one likes.
import { useEffect, useRef, useState } from "preact/hooks";
import { frame, sized } from "./canvas";
import { cell } from "./colour";
import type { ImagePart } from "./payload";
import { usePlaces } from "./places";
import { MARKED } from "./scale";
import { type ShownPart, imageShape, isBeyond } from "./shown";
import { theme } from "./state";

interface Props {
  shown: ShownPart;
  paneAt: number;
}

export function ImageView({ shown, paneAt }: Props) {
  const part = shown.part as ImagePart;
  const [rows, columns] = imageShape(part);
  const [strength, setStrength] = useState(0.75);
  const canvas = useRef<HTMLCanvasElement>(null);
  const [width, height] = [part.width, part.height];
  const placeAt = (event: MouseEvent) => {
    const box = canvas.current!.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    return column >= 0 && column < columns && row >= 0 && row < rows ? row * columns + column : null;
  };
  const moved = (key: string, from: number | null) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -Infinity, End: Infinity }[key];
    if (step === undefined) return null;
    const to = (from ?? 0) + (from === null ? 0 : step);
    if (Math.abs(step) === Infinity) return step < 0 ? 0 : rows * columns - 1;
    return to >= 0 && to < rows * columns ? to : from;
  };
  const { here, held, said, handlers } = usePlaces(shown, paneAt, placeAt, moved);

  useEffect(() => {
    const context = sized(canvas.current!, width, height);
    drawSquares(context, shown, theme.value, strength, width, height);
    for (const at of new Set([here, held])) if (at !== null) frame(context, square(at, rows, columns, width, height), at === held);
  }, [shown, strength, theme.value, here, held]);

  return (
    <figure class="image" style={{ maxWidth: `${Math.max(320, Math.min(480, width * 2))}px` }}>
      <div class="stack" style={{ aspectRatio: `${width} / ${height}` }}>
        <img src={part.png} alt={`${part.name}: the picture that the model saw, ${part.width} x ${part.height} pixels`} />
        <canvas
          ref={canvas}
          tabIndex={0}
          role="application"
          aria-roledescription="heatmap"
          aria-label={`${part.name}: relevance of ${rows} x ${columns} squares; arrow keys move, Enter holds, Escape releases`}
          {...handlers}
        />
      </div>
      <p class="hidden" aria-live="polite">
        {said}
      </p>
      <figcaption>
        <label class="range">
          Overlay
          <input
            type="range"
            min="0"
            max="1"
            step="0.05"
            value={strength}
            onInput={(event) => setStrength(Number(event.currentTarget.value))}
          />
          <output>{Math.round(100 * strength)} %</output>
        </label>
        <span class="faint">
          {rows} × {columns} squares
        </span>
      </figcaption>
    </figure>
  );
}

function square(at: number, rows: number, columns: number, width: number, height: number): [number, number, number, number] {
  const [across, down] = [width / columns, height / rows];
  return [(at % columns) * across, Math.floor(at / columns) * down, across, down];
}

/** Squares over a picture: the stronger the relevance, the less of the picture shines through; a bar marks "against". */
function drawSquares(
  context: CanvasRenderingContext2D,
  shown: ShownPart,
  theme: "light" | "dark",
  strength: number,
  width: number,
  height: number,
): void {
  const [rows, columns] = imageShape(shown.part);
  shown.scaled.shares.forEach((share, at) => {
    const [x, y, across, down] = square(at, rows, columns, width, height);
    context.globalAlpha = strength * Math.min(1, 0.15 + 0.85 * Math.abs(share));
    context.fillStyle = cell(theme, share).background;
    context.fillRect(x, y, across + 0.4, down + 0.4);
    if (isBeyond(shown, at) && strength > 0) {
      context.globalAlpha = 1;
      context.lineWidth = Math.max(0.6, across / 16);
      context.strokeStyle = "#ffffff";
      for (const inset of [0.04, 0.16]) {
        context.strokeRect(x + across * inset, y + down * inset, across * (1 - 2 * inset), down * (1 - 2 * inset));
      }
    }
    if (share <= -MARKED && strength > 0 && across >= 6) {
      context.globalAlpha = 0.9;
      context.fillStyle = "#fff";
      context.fillRect(x + across * 0.3, y + down / 2 - down * 0.05, across * 0.4, down * 0.1);
    }
  });
  context.globalAlpha = 1;
}
