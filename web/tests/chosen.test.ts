import { expect, test } from "vitest";
import { accountOf, relevanceOf, valueOf } from "../src/chosen";
import { type Account, type Result, type TextPart, numbersOf, pack, readPage } from "../src/payload";
import { panesOf } from "../src/shown";
import { type UnitKind, countingTokens, spanText, spansOf } from "../src/units";

const tokens = ["<s>", "Fr", "ance", " wins", ".", " Yes", " it"];
const values = [0.5, 1, 2, -3, 0.25, 4, 0, 1, -1, 0.5, 3, 0, 0.125, 8];

function text(change: Partial<TextPart> = {}): TextPart {
  return {
    name: "text", kind: "text", several: true, values: pack(values, [2, 7]), tokens, ids: null,
    special: [true, false, false, false, false, false, false], segments: [0, 0, 0, 0, 0, 0, 0], answer: 2,
    words: [[0, 1], [1, 3], [3, 4], [4, 5], [5, 6], [6, 7]], sentences: [[0, 1], [1, 5], [5, 7]], ...change,
  };
}

function result(change: Partial<Result> = {}): Result {
  return {
    id: "r", title: "r", kind: "explanation", model_class: "", checkpoint: "", rules: "", versions: {}, seconds: 0,
    numbers: [{ said: "a", label: "Yes", value: 5 }, { said: "b", label: "it", value: 2 }], parts: [text()], ...change,
  };
}

const all = { first: false, last: false, special: false };

test("arrays are little-endian float32", () => {
  expect(pack([1, -2], [2]).data).toBe("AACAPwAAAMA=");
  expect([...numbersOf({ shape: [2], data: "AACAPwAAAMA=" })]).toEqual([1, -2]);
  expect(() => numbersOf({ shape: [3], data: "AACAPwAAAMA=" })).toThrow("8 bytes where 12 belong");
});

test("a contrast is the difference of relevance and of values", () => {
  const chosen = { plus: [0], minus: [1] };
  expect([...relevanceOf(text(), chosen)]).toEqual(values.slice(0, 7).map((one, at) => one - values[7 + at]!));
  expect(valueOf(result(), chosen)).toBe(3);
});

test("of several numbers the one account is that of their sum", () => {
  const account: Account = { value: 7, reached: { text: 6 }, took: { bias: 1 }, residual: 0, sentences: [] };
  expect(accountOf(result({ account }), { plus: [0], minus: [] })).toBeNull();
  expect(accountOf(result({ account }), { plus: [0, 1], minus: [] })).toBe(account);
  expect(accountOf(result({ account }), { plus: [0], minus: [1] })).toBeNull();
});

test("words and sentences have the sum of their tokens", () => {
  const of = (unit: UnitKind) => {
    const views = [{ result: result(), chosen: { plus: [1], minus: [] } }];
    return [...panesOf(views, { unit, muted: all, ends: "max", together: false })[0]!.parts[0]!.values];
  };
  expect(of("tokens")).toEqual(values.slice(7));
  expect(of("words")).toEqual([1, -0.5, 3, 0, 0.125, 8]);
  expect(of("sentences")).toEqual([1, 2.5, 0.125]);
  expect(spansOf(text({ words: [[0, 3], [4, 7]] }), "words")).toHaveLength(7);
  expect(spanText(["🦙(1/2)", "🦙(2/2)", " yes"], [0, 3])).toBe("🦙 yes");
});

test("tokens that are left out do not count, nor those that come after what is explained", () => {
  const part = text();
  const said = (explained: number[], muted = all) => countingTokens(part, explained, muted).map(Number).join("");
  expect(said([0])).toBe("1111100");
  expect(said([1])).toBe("1111110");
  expect(said([0], { first: false, last: true, special: true })).toBe("0111000");
  expect(countingTokens(text({ answer: 0 }), null, { ...all, first: true, last: true }).map(Number).join("")).toBe("0111110");
});

test("tokens behind the position of a question do not count", () => {
  const numbers = [{ said: "a", label: "Yes", value: 5 }];
  const part = text({ several: false, values: pack(values.slice(0, 7), [7]), answer: 0, read: 3 });
  const said = (muted: typeof all) => countingTokens(part, null, muted).map(Number).join("");
  expect([said(all), said({ ...all, last: true })]).toEqual(["1110000", "1100000"]);
  expect(() => readPage({ format: 1, results: [result({ numbers, parts: [{ ...part, read: 8 }] })] })).toThrow("read beyond its end");
});

test("what is left out is said, and is not part of a sentence", () => {
  const views = [{ result: result(), chosen: { plus: [0], minus: [] } }];
  const choices = { unit: "sentences" as const, muted: { ...all, last: true }, ends: "max" as const, together: false };
  const [pane] = panesOf(views, choices);
  const part = pane!.parts[0]!;
  expect([...part.values]).toEqual([0.5, 0, 4]);
  expect(part.counts).toEqual([true, true, false]);
  expect(part).toMatchObject({ leftOut: 0.25, leftOutCount: 1 });
});

test("two results stand on one scale", () => {
  const views = [0, 1].map((number) => ({ result: result(), chosen: { plus: [number], minus: [] } }));
  const panes = panesOf(views, { unit: "tokens", muted: all, ends: "max", together: false });
  expect(panes.map((pane) => pane.parts[0]!.scaled.end)).toEqual([3, 3]);
});

test("a part whose numbers do not fit is refused", () => {
  const wrong = result({ parts: [text({ tokens: ["one"] })] });
  expect(() => readPage({ format: 1, results: [wrong] })).toThrow('the part "text"');
  expect(() => readPage({ format: 2, results: [] })).toThrow("format 2");
});
