// Drawing on a canvas at the resolution of the screen.
import { type Theme, cell, channels } from "./colour";
import { MARKED } from "./scale";

/** Sets the size of a canvas in CSS pixels and returns what draws in these. */
export function sized(canvas: HTMLCanvasElement, width: number, height: number): CanvasRenderingContext2D {
  const times = Math.min(2, devicePixelRatio || 1);
  const [across, down] = [Math.round(width * times), Math.round(height * times)];
  if (canvas.width !== across || canvas.height !== down) {
    canvas.width = across;
    canvas.height = down;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d")!;
  context.setTransform(times, 0, 0, times, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** Shares [rows x columns] as a small picture, one pixel each. */
export function pixels(shares: ArrayLike<number>, rows: number, columns: number, theme: Theme): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d")!;
  const image = context.createImageData(columns, rows);
  const known = new Map<number, [number, number, number]>();
  for (let at = 0; at < rows * columns; at++) {
    const step = Math.round((shares[at] ?? 0) * 128);
    let colour = known.get(step);
    if (colour === undefined) known.set(step, (colour = channels(cell(theme, step / 128).background)));
    image.data.set([...colour, 255], 4 * at);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** A short bar in each cell that is clearly against, so that the sign is seen without colour; as light or dark as a letter
 * would be there. Row 0 is at the top. */
export function minusMarks(
  context: CanvasRenderingContext2D,
  shares: ArrayLike<number>,
  columns: number,
  [left, top, across, down]: [number, number, number, number],
  theme: Theme,
): void {
  if (across < 8 || down < 5) return;
  for (let at = 0; at < shares.length; at++) {
    if (shares[at]! > -MARKED) continue;
    context.fillStyle = cell(theme, shares[at]!).ink;
    const [x, y] = [left + (at % columns) * across, top + Math.floor(at / columns) * down];
    context.fillRect(x + across / 2 - 3.5, y + down / 2 - 0.75, 7, 1.5);
  }
}

/** A frame around a place, seen on any ground; of the one that is held a wide one. */
export function frame(context: CanvasRenderingContext2D, [x, y, across, down]: [number, number, number, number], wide: boolean): void {
  for (const [width, colour] of [[wide ? 5 : 3, "#111111"], [wide ? 2.5 : 1.25, "#ffffff"]] as const) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.strokeRect(x, y, across, down);
  }
}
