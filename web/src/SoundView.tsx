// A sound: its spectrogram or loudness, and the relevance of each step as bars, up for and down against. A bar that ends beyond the scale has a double end.
import { useEffect, useRef } from "preact/hooks";
import { frame, sized } from "./canvas";
import { SCALES, type Theme } from "./colour";
import { type SoundPart, numbersOf } from "./payload";
import { usePlaces } from "./places";
import { type ShownPart, isBeyond } from "./shown";
import { theme } from "./state";

const HEIGHT = 132;
const WIDTH = 720;

export function SoundView({ shown, paneAt }: { shown: ShownPart; paneAt: number }) {
  const part = shown.part as SoundPart;
  const canvas = useRef<HTMLCanvasElement>(null);
  const count = shown.values.length;
  const placeAt = (event: MouseEvent) => {
    const box = canvas.current!.getBoundingClientRect();
    const place = Math.floor(((event.clientX - box.left) / box.width) * count);
    return place >= 0 && place < count ? place : null;
  };
  const moved = (key: string, from: number | null) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10, Home: -count, End: count }[key];
    return step === undefined ? null : Math.max(0, Math.min(count - 1, (from ?? -1) + step));
  };
  const { here, held, said, handlers } = usePlaces(shown, paneAt, placeAt, moved);
  useEffect(() => {
    const context = sized(canvas.current!, WIDTH, HEIGHT);
    canvas.current!.style.width = "100%";
    canvas.current!.style.height = "auto";
    drawSound(context, shown, theme.value, WIDTH, HEIGHT);
    for (const at of new Set([here, held])) {
      if (at !== null) frame(context, [(at / count) * WIDTH, 1.5, Math.max(2, WIDTH / count), HEIGHT - 3], at === held);
    }
  }, [shown, theme.value, here, held]);

  const size = shown.spans[0]![1] - shown.spans[0]![0];
  const total = shown.spans[count - 1]![1] * part.step;
  const end = part.start + total;
  return (
    <figure class="sound" dir="ltr">
      {part.spectrogram && part.seconds && (
        <img
          src={part.spectrogram}
          style={{ width: `${Math.min(100, (100 * part.seconds) / total)}%` }}
          alt={`${part.name}: spectrogram, time to the right, pitch upwards`}
        />
      )}
      <canvas
        ref={canvas}
        tabIndex={0}
        role="application"
        aria-roledescription="heatmap"
        aria-label={`${part.name}: relevance of ${count} bars; arrow keys move, Enter holds, Escape releases`}
        {...handlers}
      />
      <p class="hidden" aria-live="polite">
        {said}
      </p>
      <figcaption class="faint">
        <span>{part.start.toFixed(1)} s</span>
        <span>
          bars up: for · bars down: against{part.loudness ? " · grey: loudness" : ""} · a bar is {(size * part.step).toFixed(2)} s
        </span>
        <span>{end.toFixed(1)} s</span>
      </figcaption>
    </figure>
  );
}

/** Bars from the middle line over the loudness in grey. */
function drawSound(context: CanvasRenderingContext2D, shown: ShownPart, theme: Theme, width: number, height: number): void {
  const part = shown.part as SoundPart;
  const count = shown.values.length;
  const [middle, half, across] = [height / 2, height / 2 - 4, width / count];
  if (part.loudness) {
    const loud = numbersOf(part.loudness);
    const most = loud.reduce((a, b) => Math.max(a, b), 0) || 1;
    context.fillStyle = theme === "dark" ? "#3a4048" : "#dfe3e8";
    loud.forEach((value, at) => {
      const tall = (value / most) * half;
      context.fillRect((at * width) / loud.length, middle - tall, width / loud.length + 0.3, 2 * tall);
    });
  }
  const { positive, negative } = SCALES[theme];
  shown.scaled.shares.forEach((share, at) => {
    context.fillStyle = share > 0 ? positive : negative;
    const tall = share * half;
    context.fillRect(at * across, Math.min(middle, middle - tall), Math.max(0.7, across - (across > 3 ? 0.8 : 0)), Math.abs(tall));
    if (isBeyond(shown, at)) context.clearRect(at * across, middle - tall + (share > 0 ? 3 : -5), across, 2);
  });
  context.fillStyle = theme === "dark" ? "#8b949e" : "#6b7280";
  context.fillRect(0, middle - 0.5, width, 1);
}
