// Numbers and results in words.
import type { TextPart } from "./payload";

/** Three digits, with a true minus sign; no exponent between a thousandth and a million. */
export function amount(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e+", "e").replaceAll("-", "−");
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 || size === 0 ? 2 : size >= 0.1 ? 2 : 3;
  return value.toFixed(digits).replace("-", "−");
}

/** The same with a sign, + too; `0` has none. */
export function signed(value: number): string {
  return value > 0 ? `+${amount(value)}` : value === 0 ? "0" : amount(value);
}

export function side(value: number): string {
  return value > 0 ? "for" : value < 0 ? "against" : "no relevance";
}

/** A number for a screen reader: "plus 0.82, for". */
export function spoken(value: number): string {
  if (value === 0) return "no relevance";
  return `relevance ${value > 0 ? "plus" : "minus"} ${amount(Math.abs(value))}, ${side(value)}`;
}

export function percent(share: number): string {
  const size = Math.abs(100 * share);
  const said = size >= 1 || size === 0 ? size.toFixed(0) : size.toPrecision(1);
  return `${share < 0 && Number(said) !== 0 ? "−" : ""}${said} %`;
}

export function counted(count: number, one: string, many = `${one}s`): string {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

/** 1st, 2nd, 3rd, 4th. */
export function ordinal(count: number): string {
  const teen = count % 100 > 10 && count % 100 < 14;
  return `${count.toLocaleString("en")}${teen ? "th" : (["th", "st", "nd", "rd"][count % 10] ?? "th")}`;
}

export function listed(items: string[]): string {
  return items.length > 1 ? `${items.slice(0, -1).join(", ")} and ${items[items.length - 1]}` : (items[0] ?? "");
}

/** A token by its name: without the space before it, and spelt where it is only white space. */
export function tokenName(token: string): string {
  const bare = token.trim();
  if (bare === "↵") return "line break";
  if (bare !== "") return bare;
  return token === "" ? "empty token" : "space";
}

/** So many decimals, of two that are as near the even one: Python's `f"{value:.2f}"`. */
export function fixed(value: number, decimals: number): string {
  const exact = Math.abs(value).toFixed(decimals + EXACT);
  const [whole, rest] = [exact.slice(0, -EXACT), exact.slice(-EXACT)];
  const below = whole.replace(/\.$/, "");
  const isTie = /^50*$/.test(rest) && Number.isFinite(value);
  return isTie && Number(below.slice(-1)) % 2 === 0 ? `${value < 0 ? "-" : ""}${below}` : value.toFixed(decimals);
}

const EXACT = 40; // decimals beyond which no number that is written here has any

/** So many digits, without zeros at their end: Python's `f"{value:.3g}"`. */
export function general(value: number, digits: number): string {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  const [mantissa, power] = value.toExponential(digits - 1).split("e") as [string, string];
  const size = Number(power);
  const short = (text: string) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  if (size >= -4 && size < digits) return short(fixed(value, digits - 1 - size));
  return `${short(mantissa)}e${size < 0 ? "-" : "+"}${String(Math.abs(size)).padStart(2, "0")}`;
}

/** With a capital first. */
export function capital(text: string): string {
  return text.charAt(0).toLocaleUpperCase() + text.slice(1);
}

/** A sentence as it stands in a page: a capital first, a full stop last. */
export function sentence(text: string): string {
  const whole = capital(text.replaceAll("`", ""));
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

/** The direction that a text runs in: that of its first letter that has one. */
export function direction(text: string): "ltr" | "rtl" | null {
  const found = /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]|\p{L}/u.exec(text);
  if (found === null) return null;
  return /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/u.test(found[0]) ? "rtl" : "ltr";
}

/** The first token of the answer; the number of tokens where there is none. */
export function answerStart(part: TextPart): number {
  return part.tokens.length - part.answer;
}
