// Numbers and results in words.
import type { Account, TextPart } from "./payload";

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

const FEW = 0.01;

/** Writes amounts with as many decimals as a value has with three digits, so that they add up before one's eyes. */
function writer(value: number): (amount: number) => string {
  const size = value !== 0 && Number.isFinite(value) ? Math.floor(Math.log10(Math.abs(value))) : 0;
  if (size < -4) return amount;
  const decimals = Math.max(0, 2 - size);
  return (one) => {
    const text = one.toFixed(decimals);
    return (one === 0 ? "0" : Number(text) === 0 ? one.toPrecision(1) : text).replace("-", "−");
  };
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

/** What an account says, in one sentence: "Of 17.4: 6.43 reaches the tokens, 11.0 is the softmax offset." */
export function accountSentence(account: Account): string {
  const reached = Object.entries(account.reached).filter(([, value]) => value !== 0);
  const took = Object.entries(account.took)
    .filter(([, value]) => value !== 0)
    .sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const written = writer(account.value);
  const least = FEW * Math.abs(account.value);
  const named = took.filter(([, value]) => Math.abs(value) >= least).slice(0, 4);
  const rest = took.slice(named.length).reduce((sum, [, value]) => sum + value, 0);
  const said = [
    ...reached.map(([name, value]) => `${written(value)} reaches the ${inputName(name)}`),
    ...named.map(([name, value]) => `${written(value)} is ${causeName(name)}`),
  ];
  if (Math.abs(rest) >= least && took.length > named.length) {
    said.push(`${written(rest)} are ${counted(took.length - named.length, "smaller cause")}`);
  }
  if (Math.abs(account.residual) >= 0.001 * Math.abs(account.value) && account.residual !== 0) {
    said.push(`${written(account.residual)} is rounding`);
  }
  return `Of ${written(account.value)}: ${said.join(", ") || "nothing reaches the inputs"}.`;
}

/** Why the sum is not the value, where there is no account. */
export function gapSentence(value: number, sum: number): string {
  const gap = value - sum;
  const written = writer(value);
  if (Math.abs(gap) <= 0.001 * Math.abs(value)) {
    return `The relevance sums to the explained ${written(value)}.`;
  }
  return (
    `Of ${written(value)}, ${written(sum)} reaches the inputs. The other ${written(gap)} stayed in the model's own parts, such as ` +
    "biases or the softmax offset of attention; explain with account=True to see which."
  );
}

export function inputName(name: string): string {
  return name === "text" ? "tokens" : name;
}

export function causeName(name: string): string {
  if (name === "bias") return "biases";
  if (name === "softmax offset" || name === "reconstruction error" || name === "selection") return `the ${name}`;
  return name;
}

/** What ledger's causes mean, as lxt_fx/results/account.py has it (a test compares them). */
export const MEANINGS: Record<string, string> = {
  bias: "the biases of layers",
  "added constant": "what the model adds whatever the input is, such as embeddings of positions or of [CLS]",
  positions: "the places of words by which the model turns queries and keys, where a table gives them a share",
  "activation at 0": "what an activation gives for 0",
  "softmax offset": "the part of the attention weights that would be there whatever the scores are",
  epsilon: "the epsilon that a rule divides by",
  "contributions of one sign": "a rule splits by sign, and nothing had that sign",
  "inputs of 0": "numbers that are 0 and so carry no relevance, such as black pixels",
  selection: "constants that were put in the place of a value",
  "held operand": "what a rule holds constant",
  "native gradient": "ops that got their plain gradient, which shares out another amount than arrived",
  "reconstruction error": "what a dictionary does not explain",
  features: "features of a dictionary, where relevance ends",
  "own backward": "functions with a backward of their own",
  "packed kernel": "what the kernels of quantised layers round off their inputs",
  "no rule": "ops that no rule fits (strict=False)",
  target: "the explained number is no linear function of the model's output (a log-probability is none), so that the relevance of the output sums to another number",
  "not accounted for": "rounding, or a rule that loses relevance",
};

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
