// The colours of lxt_fx/views/colour.py: blue against, red for, mixed in OKLab (Ottosson 2020), both ends of one lightness.

type Triple = [number, number, number];

interface Diverging {
  negative: string;
  neutral: string;
  positive: string;
}

export type Theme = "light" | "dark";

export const SCALES: Record<Theme, Diverging> = {
  light: { negative: "#1762b6", neutral: "#ffffff", positive: "#b71824" },
  dark: { negative: "#4c94ec", neutral: "#1d2126", positive: "#f14445" },
};

const STEPS = 128;
const tables = new Map<string, { background: string; ink: string }[]>();

/** Background and ink of a share from -1 to 1, in steps of 1/128. */
export function cell(theme: Theme, share: number): { background: string; ink: string } {
  let table = tables.get(theme);
  if (table === undefined) {
    table = [];
    for (let at = -STEPS; at <= STEPS; at++) {
      const background = mixed(SCALES[theme], at / STEPS);
      table.push({ background, ink: ink(background) });
    }
    tables.set(theme, table);
  }
  return table[Math.round(Math.min(1, Math.max(-1, share)) * STEPS) + STEPS]!;
}

/** The colour of a share of the largest absolute relevance, from -1 to 1. */
export function mixed(scale: Diverging, share: number): string {
  const clipped = Math.min(1, Math.max(-1, share));
  const start = oklab(scale.neutral);
  const end = oklab(clipped > 0 ? scale.positive : scale.negative);
  const [a, b, c] = start.map((s, at) => s + Math.abs(clipped) * (end[at]! - s)) as Triple;
  return hex([a, b, c]);
}

/** A CSS gradient over the whole scale. */
export function gradient(theme: Theme): string {
  const stops = Array.from({ length: 17 }, (_, at) => cell(theme, at / 8 - 1).background);
  return `linear-gradient(to right, ${stops.join(", ")})`;
}

/** Black or white, whichever contrasts more; the ratio is then at least 4.5, WCAG's level AA. */
export function ink(background: string): string {
  return contrast("#000000", background) >= contrast("#ffffff", background) ? "#000000" : "#ffffff";
}

/** The contrast ratio of WCAG 2, from 1 to 21. */
export function contrast(first: string, second: string): number {
  const [darker, lighter] = [luminance(first), luminance(second)].sort((a, b) => a - b) as [number, number];
  return (lighter + 0.05) / (darker + 0.05);
}

export function channels(colour: string): Triple {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)) as Triple;
}

function luminance(colour: string): number {
  const [red, green, blue] = linear(colour);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function linear(colour: string): Triple {
  return channels(colour).map((c) => {
    const level = c / 255;
    return level <= 0.04045 ? level / 12.92 : ((level + 0.055) / 1.055) ** 2.4;
  }) as Triple;
}

function encoded(channel: number): number {
  const clipped = Math.min(1, Math.max(0, channel));
  return clipped <= 0.0031308 ? 12.92 * clipped : 1.055 * clipped ** (1 / 2.4) - 0.055;
}

function oklab(colour: string): Triple {
  const [red, green, blue] = linear(colour);
  const long = Math.cbrt(0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue);
  const middle = Math.cbrt(0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue);
  const short = Math.cbrt(0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue);
  return [
    0.2104542553 * long + 0.793617785 * middle - 0.0040720468 * short,
    1.9779984951 * long - 2.428592205 * middle + 0.4505937099 * short,
    0.0259040371 * long + 0.7827717662 * middle - 0.808675766 * short,
  ];
}

function hex([lightness, a, b]: Triple): string {
  const long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const short = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const found = [
    4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
    -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
    -0.0041960863 * long - 0.7034186147 * middle + 1.707614701 * short,
  ];
  return "#" + found.map((c) => Math.round(255 * encoded(c)).toString(16).padStart(2, "0")).join("");
}
