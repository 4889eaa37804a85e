// A result as a picture: one list of shapes that SVG and PNG are both made of.
import { type Theme, SCALES, cell } from "./colour";
import type { ImagePart, SoundPart, TextPart } from "./payload";
import { MARKED } from "./scale";
import { type Pane, type ShownPart, explainedIn, imageShape, isBeyond, numbersOfSpan } from "./shown";
import { firstUnread } from "./units";
import { direction, side, signed } from "./words";

type Shape =
  | { kind: "box"; x: number; y: number; width: number; height: number; fill: string; stroke?: string; opacity?: number }
  | { kind: "text"; x: number; y: number; text: string; size: number; fill: string; bold?: boolean; rtl?: boolean }
  | { kind: "line"; x: number; y: number; width: number; stroke: string; dashed: boolean }
  | { kind: "picture"; x: number; y: number; width: number; height: number; href: string };

export interface Drawing {
  width: number;
  height: number;
  ground: string;
  shapes: Shape[];
}

const WIDTH = 920;
const MARGIN = 28;
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Noto Color Emoji', sans-serif";
const TALLEST = 16000;

/** The shown pane as shapes; `width` says how wide a text is. */
export function drawing(pane: Pane, theme: Theme, heading: string, sentences: string[], measure: Measure): Drawing {
  const dark = theme === "dark";
  const [ink, faint] = dark ? ["#e4e8ed", "#9aa4b0"] : ["#1b1f24", "#5b6470"];
  const shapes: Shape[] = [];
  let y = MARGIN;
  const say = (text: string, size: number, fill: string, bold = false) => {
    for (const line of wrapped(text, WIDTH - 2 * MARGIN, size, measure)) {
      y += size * 1.45;
      shapes.push({ kind: "text", x: MARGIN, y: y - size * 0.4, text: line, size, fill, bold });
    }
  };
  say(heading, 19, ink, true);
  y += 10;
  for (const part of pane.parts) {
    if (pane.parts.length > 1) say(part.part.name, 12, faint);
    y += 6;
    if (part.part.kind === "text") y = tokens(pane, part, theme, shapes, y, measure);
    else if (part.part.kind === "image") y = picture(part, theme, shapes, y);
    else y = bars(part, theme, ink, faint, shapes, y);
    y += 14;
  }
  y += 4;
  for (let at = 0; at < 64; at++) {
    shapes.push({ kind: "box", x: MARGIN + 62 + at * 3, y, width: 3.2, height: 9, fill: cell(theme, at / 31.5 - 1).background });
  }
  shapes.push({ kind: "text", x: MARGIN, y: y + 9, text: "against", size: 12, fill: faint });
  shapes.push({ kind: "text", x: MARGIN + 264, y: y + 9, text: "for", size: 12, fill: faint });
  y += 22;
  sentences.filter(Boolean).forEach((sentence) => say(sentence, 12, faint));
  return { width: WIDTH, height: Math.ceil(y + MARGIN), ground: dark ? "#14171b" : "#ffffff", shapes };
}

type Measure = (text: string, size: number) => number;

/** How wide texts are, by the browser. */
export function measured(): Measure {
  const context = document.createElement("canvas").getContext("2d")!;
  return (text, size) => {
    context.font = `${size}px ${FONT}`;
    return context.measureText(text).width;
  };
}

function wrapped(text: string, width: number, size: number, measure: Measure): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    const longer = line === "" ? word : `${line} ${word}`;
    if (line !== "" && measure(longer, size) > width) {
      lines.push(line);
      line = word;
    } else line = longer;
  }
  return [...lines, line];
}

function tokens(pane: Pane, shown: ShownPart, theme: Theme, shapes: Shape[], top: number, measure: Measure): number {
  const part = shown.part as TextPart;
  const [size, line] = [16, 32];
  const [ink, ground, faint, edge] = theme === "dark" ? ["#e4e8ed", "#14171b", "#9aa4b0", "#3b424b"] : ["#1b1f24", "#ffffff", "#5b6470", "#d4d9df"];
  const { result, chosen } = pane.view;
  const unread = firstUnread(part, explainedIn(pane.view, part));
  const rtl = direction(part.tokens.join("")) === "rtl";
  const room = WIDTH - 2 * MARGIN;
  const answer = part.tokens.length - part.answer;
  let [x, y] = [0, top];
  shown.texts.forEach((text, at) => {
    const lead = /^ +(?=\S)/.exec(text)?.[0].length ?? 0;
    const bare = text.slice(lead).trim() === "" ? "␣" : text.slice(lead);
    const width = Math.min(room, measure(bare, size) + 6);
    const opens = part.answer > 0 && shown.spans[at]![0] === answer;
    if (x > 0 && (x + width + lead * 5 > room || opens)) [x, y] = [0, y + line];
    if (opens) y += 8;
    if (x > 0) x += Math.min(lead, 8) * 5;
    const left = rtl ? WIDTH - MARGIN - x - width : MARGIN + x;
    const share = shown.scaled.shares[at]!;
    const isExplained = numbersOfSpan(part, result.numbers.length, shown.spans[at]!).some((number) => chosen.plus.includes(number));
    const later = shown.spans[at]![0] >= unread;
    const plain = { background: "none", ink: faint };
    const colours = isExplained ? { background: ink, ink: ground } : shown.counts[at] ? cell(theme, share) : plain;
    if (isBeyond(shown, at)) {
      shapes.push({ kind: "box", x: left - 2.5, y: y - 2.5, width: width + 4, height: 30, fill: "none", stroke: cell(theme, share).background });
    }
    shapes.push({ kind: "box", x: left, y, width: width - 1, height: 25, fill: colours.background, stroke: later ? "none" : edge });
    shapes.push({ kind: "text", x: left + 3, y: y + 18, text: bare, size, fill: colours.ink, rtl: direction(bare) === "rtl" });
    if (Math.abs(share) >= MARKED) {
      shapes.push({ kind: "line", x: left + 2, y: y + 22.5, width: width - 5, stroke: colours.ink, dashed: share < 0 });
    }
    x += width;
    if (text.includes("↵")) [x, y] = [0, y + line];
  });
  return y + (x > 0 ? line : 0);
}

function picture(shown: ShownPart, theme: Theme, shapes: Shape[], top: number): number {
  const part = shown.part as ImagePart;
  const [rows, columns] = imageShape(part);
  const width = Math.min(420, part.width * 2);
  const height = (width * part.height) / part.width;
  shapes.push({ kind: "picture", x: MARGIN, y: top, width, height, href: part.png });
  shown.scaled.shares.forEach((share, at) => {
    shapes.push({
      kind: "box",
      x: MARGIN + ((at % columns) * width) / columns,
      y: top + (Math.floor(at / columns) * height) / rows,
      width: width / columns,
      height: height / rows,
      fill: cell(theme, share).background,
      opacity: 0.75 * Math.min(1, 0.15 + 0.85 * Math.abs(share)),
    });
    if (share > -MARKED && !isBeyond(shown, at)) return;
    const [x, y] = [MARGIN + ((at % columns) * width) / columns, top + (Math.floor(at / columns) * height) / rows];
    const [across, down] = [width / columns, height / rows];
    if (share < 0) shapes.push({ kind: "box", x: x + across * 0.3, y: y + down * 0.45, width: across * 0.4, height: down * 0.1, fill: "#ffffff" });
    if (!isBeyond(shown, at)) return;
    for (const inset of [0.04, 0.16]) {
      const size = 1 - 2 * inset;
      shapes.push({ kind: "box", x: x + across * inset, y: y + down * inset, width: across * size, height: down * size, fill: "none", stroke: "#ffffff" });
    }
  });
  return top + height;
}

function bars(shown: ShownPart, theme: Theme, ink: string, faint: string, shapes: Shape[], top: number): number {
  const { positive, negative } = SCALES[theme];
  if (shown.part.kind === "sound") {
    const part = shown.part as SoundPart;
    const [width, half] = [WIDTH - 2 * MARGIN, 50];
    const total = shown.spans[shown.spans.length - 1]![1] * part.step;
    const long = part.spectrogram && part.seconds ? width * Math.min(1, part.seconds / total) : 0;
    if (part.spectrogram && long) shapes.push({ kind: "picture", x: MARGIN, y: top, width: long, height: 90, href: part.spectrogram });
    const start = top + (long ? 96 : 0);
    const across = width / shown.values.length;
    shown.scaled.shares.forEach((share, at) => {
      const y = start + half - Math.max(0, share) * half;
      shapes.push({ kind: "box", x: MARGIN + at * across, y, width: across, height: Math.abs(share) * half, fill: share > 0 ? positive : negative });
    });
    shapes.push({ kind: "line", x: MARGIN, y: start + half, width, stroke: faint, dashed: false });
    return start + 2 * half;
  }
  const names = shown.part.kind === "numbers" ? shown.part.names : [];
  const order = Array.from(shown.values.keys()).sort((a, b) => Math.abs(shown.values[b]!) - Math.abs(shown.values[a]!));
  order.slice(0, 40).forEach((at, index) => {
    const [y, value, share] = [top + index * 20, shown.values[at]!, shown.scaled.shares[at]!];
    shapes.push({ kind: "text", x: MARGIN, y: y + 14, text: names[at] ?? `number ${at}`, size: 13, fill: ink });
    shapes.push({ kind: "text", x: 330, y: y + 14, text: `${signed(value)} ${side(value)}`, size: 12, fill: faint });
    const width = Math.abs(share) * 200;
    shapes.push({ kind: "box", x: share < 0 ? 690 - width : 690, y: y + 4, width, height: 11, fill: share > 0 ? positive : negative });
  });
  return top + Math.min(40, order.length) * 20;
}

/** The drawing as SVG; every text is escaped. */
export function svg({ width, height, ground, shapes }: Drawing): string {
  const body = shapes.map((shape) => {
    if (shape.kind === "box") {
      const more = `${shape.stroke && shape.stroke !== "none" ? ` stroke="${shape.stroke}" rx="3"` : ""}${shape.opacity === undefined ? "" : ` opacity="${shape.opacity.toFixed(3)}"`}`;
      return `<rect x="${n(shape.x)}" y="${n(shape.y)}" width="${n(shape.width)}" height="${n(shape.height)}" fill="${shape.fill}"${more}/>`;
    }
    if (shape.kind === "line") {
      const dashes = shape.dashed ? ' stroke-dasharray="3 2.5"' : "";
      return `<path d="M${n(shape.x)} ${n(shape.y)}h${n(shape.width)}" stroke="${shape.stroke}" stroke-width="1.4"${dashes}/>`;
    }
    if (shape.kind === "picture") {
      return `<image x="${n(shape.x)}" y="${n(shape.y)}" width="${n(shape.width)}" height="${n(shape.height)}" preserveAspectRatio="none" href="${escaped(shape.href)}"/>`;
    }
    const bold = shape.bold ? ' font-weight="600"' : "";
    const rtl = shape.rtl ? ' direction="rtl" text-anchor="end"' : "";
    return `<text x="${n(shape.x)}" y="${n(shape.y)}" font-size="${shape.size}" fill="${shape.fill}" xml:space="preserve"${bold}${rtl}>${escaped(shape.text)}</text>`;
  });
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="${FONT}">\n` +
    `<rect width="${width}" height="${height}" fill="${ground}"/>\n${body.join("\n")}\n</svg>\n`
  );
}

const n = (value: number) => String(Math.round(100 * value) / 100);

// What XML 1.0 has no place for is written as the replacement character.
const NO_XML = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

function escaped(text: string): string {
  return text
    .replace(NO_XML, "\ufffd")
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;");
}

/** The drawing as PNG, at twice its size where that is not too tall. */
export async function png({ width, height, ground, shapes }: Drawing): Promise<Blob> {
  const times = Math.min(2, TALLEST / height);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.round(width * times), Math.round(height * times)];
  const context = canvas.getContext("2d")!;
  context.scale(times, times);
  context.fillStyle = ground;
  context.fillRect(0, 0, width, height);
  for (const shape of shapes) {
    if (shape.kind === "box") {
      context.globalAlpha = shape.opacity ?? 1;
      if (shape.fill !== "none") {
        context.fillStyle = shape.fill;
        context.fillRect(shape.x, shape.y, shape.width, shape.height);
      }
      context.globalAlpha = 1;
      if (shape.stroke && shape.stroke !== "none") {
        context.strokeStyle = shape.stroke;
        context.strokeRect(shape.x, shape.y, shape.width, shape.height);
      }
    } else if (shape.kind === "line") {
      context.setLineDash(shape.dashed ? [3, 2.5] : []);
      context.lineWidth = 1.4;
      context.strokeStyle = shape.stroke;
      context.beginPath();
      context.moveTo(shape.x, shape.y);
      context.lineTo(shape.x + shape.width, shape.y);
      context.stroke();
      context.setLineDash([]);
      context.lineWidth = 1;
    } else if (shape.kind === "picture") {
      const image = new Image();
      image.src = shape.href;
      await image.decode();
      context.drawImage(image, shape.x, shape.y, shape.width, shape.height);
    } else {
      context.font = `${shape.bold ? "600 " : ""}${shape.size}px ${FONT}`;
      context.fillStyle = shape.fill;
      context.fillText(shape.text, shape.x, shape.y);
    }
  }
  return new Promise((done, fail) =>
    canvas.toBlob((blob) => (blob === null ? fail(new Error("the picture is too large for this browser")) : done(blob)), "image/png"),
  );
}

/** What a file of the result is called. */
export function fileName(title: string): string {
  const bare = title.normalize("NFKD").replace(/[^\p{L}\p{N}]+/gu, "_").replace(/^_+|_+$/g, "");
  return bare.slice(0, 60) || "result";
}

