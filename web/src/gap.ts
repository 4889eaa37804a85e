// Why the relevance of the inputs does not sum to the explained number: the sentences of lxt_fx/results/gap.py, for files that
// are read without Python and for sums and differences of numbers. tests/browser/gap_cases.json has cases that both must write.
import type { Account, Part } from "./payload";
import { general, fixed } from "./words";

const [NAMED, SMALL, ROUNDING] = [4, 0.01, 0.001];

/** What follows an amount that a cause of the ledger took. */
const CAUSES: Record<string, string> = {
  bias: "is biases",
  "added constant": "is added constants",
  positions: "belongs to positions",
  "activation at 0": "is what activations give for 0",
  "softmax offset": "is the softmax offset",
  epsilon: "is epsilon",
  "contributions of one sign": "met no contribution of its sign",
  "inputs of 0": "belongs to inputs of 0",
  selection: "is selected constants",
  "held operand": "is held constant",
  "native gradient": "went at ops with their plain gradient",
  "reconstruction error": "is what a dictionary does not explain",
  features: "ends at features of a dictionary",
  "own backward": "went at functions with a backward of their own",
  "packed kernel": "is the rounding of quantised layers",
  "no rule": "went at ops without a rule",
  target: "is what the number has beside the output's relevance",
  "not accounted for": "is not accounted for",
};

/** What the ledger's causes mean. */
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

const SHOWN: Partial<Record<Part["kind"], string>> = { text: "the tokens", image: "the pixels", sound: "the sound" };
const HOW = "`account=True` or lxt_fx.audit says where";

type Named = Pick<Part, "name" | "kind">;

/** What a person calls each part: `the tokens` of the only text. */
export function inputNames(parts: Named[]): Record<string, string> {
  const [only] = parts;
  if (parts.length === 1 && only !== undefined) return { [only.name]: SHOWN[only.kind] ?? `the ${only.name}` };
  return Object.fromEntries(parts.map(({ name }) => [name, `the ${name}`]));
}

/** The account in one sentence, the largest causes first, and what these mean. */
export function accountSentences(account: Omit<Account, "sentences">, parts: Named[]): string[] {
  const written = writer(account.value);
  const names = inputNames(parts);
  const all = Object.entries(account.reached);
  const some = all.filter(([, amount]) => amount !== 0);
  const causes = namedCauses(account);
  const found = (some.length > 0 ? some : all).map(([name, amount]) => `${written(amount)} reaches ${names[name] ?? `the ${name}`}`);
  found.push(...causes.map(([name, amount]) => `${written(amount)} ${CAUSES[name] ?? `went to ${name}`}`));
  if (account.residual !== 0 && Math.abs(account.residual) >= ROUNDING * Math.abs(account.value)) {
    found.push(`${written(account.residual)} is rounding`);
  }
  const meanings = causes.flatMap(([name]) => (MEANINGS[name] === undefined ? [] : [`${name}: ${MEANINGS[name]}`]));
  return [`of ${written(account.value)}: ${found.join(", ")}`, ...meanings];
}

/** The causes that took something, the largest first; the smallest together, if they come to anything. */
function namedCauses(account: Pick<Account, "value" | "took">): [string, number][] {
  const value = Math.abs(account.value);
  const ordered = Object.entries(account.took).filter(([, amount]) => amount !== 0);
  ordered.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const named = ordered.filter(([, amount]) => Math.abs(amount) >= SMALL * value).slice(0, NAMED);
  const rest = ordered.slice(named.length).reduce((sum, [, amount]) => sum + amount, 0);
  const count = ordered.length - named.length;
  if (count === 0 || Math.abs(rest) < ROUNDING * value) return named;
  return count === 1 ? ordered : [...named, [`${count} smaller causes`, rest]];
}

/** What stands beside an explained number and the sum of the relevance of its inputs, where it has no account of its own;
 * `together` says that there is one of all numbers. */
export function gapSentence(parts: Named[], value: number, total: number, together: boolean): string {
  const written = writer(value);
  const sums = parts.length > 0 ? Object.values(inputNames(parts)).join(" and ") : "the inputs";
  const said = `the relevance of ${sums} sums to`;
  if (Math.abs(value - total) <= ROUNDING * Math.abs(value)) return `${said} the value, ${written(value)}`;
  const inside = Math.abs(total) < Math.abs(value) && total * value > 0;
  const gap = inside ? "the rest was absorbed on the way" : "the difference was absorbed on the way";
  const how = together ? "the account of all numbers together says where" : HOW;
  return `${said} ${written(total)} of the value ${written(value)}; ${gap}: biases, softmax; ${how}`;
}

/** Writes amounts with as many decimals as a value has with three digits, so that they add up before one's eyes. */
function writer(value: number): (amount: number) => string {
  const size = value !== 0 && Number.isFinite(value) ? Math.floor(Math.log10(Math.abs(value))) : 0;
  const decimals = size < -4 ? null : Math.max(0, 2 - size);
  return (amount) => {
    const text = decimals === null ? general(amount, 3) : fixed(amount, decimals);
    const whole = amount !== 0 && Number(text) === 0 ? general(amount, 1) : text;
    return (amount === 0 ? "0" : whole).replaceAll("-", "−");
  };
}
