import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { accountSentences, gapSentence } from "../src/gap";
import type { Account, Part, Span } from "../src/payload";
import { sentencesOf, wordsOf } from "../src/segments";
import { fixed, general } from "../src/words";

type Named = Pick<Part, "name" | "kind">;

interface Gaps {
  accounts: { parts: Named[]; account: Omit<Account, "sentences">; sentences: string[] }[];
  gaps: { parts: Named[]; value: number; total: number; together: boolean; sentence: string }[];
}

interface Text {
  tokens: string[];
  special: number[];
  segments: number[];
  answer: number;
  words: Span[];
  sentences: Span[];
}

const cases = (name: string): unknown => JSON.parse(readFileSync(`../tests/browser/${name}_cases.json`, "utf8"));

test("accounts and gaps are said as Python says them", () => {
  const { accounts, gaps } = cases("gap") as Gaps;
  expect(accounts.length).toBeGreaterThan(30);
  expect(gaps.length).toBeGreaterThan(5);
  for (const { parts, account, sentences } of accounts) expect(accountSentences(account, parts)).toEqual(sentences);
  for (const one of gaps) expect(gapSentence(one.parts, one.value, one.total, one.together)).toBe(one.sentence);
});

test("words and sentences are those of Python", () => {
  const texts = cases("word") as Text[];
  expect(texts.length).toBeGreaterThan(20);
  const said = (tokens: string[], spans: Span[]) => spans.map(([start, stop]) => tokens.slice(start, stop).join("")).join("|");
  for (const { tokens, special, segments, answer, words, sentences } of texts) {
    const reading = { tokens, special: tokens.map((_, at) => special.includes(at)), segments, answer };
    expect(said(tokens, wordsOf(reading))).toBe(said(tokens, words));
    expect(said(tokens, sentencesOf(reading))).toBe(said(tokens, sentences));
    expect([wordsOf(reading), sentencesOf(reading)]).toEqual([words, sentences]);
  }
});

test("numbers are rounded as Python does", () => {
  const rounded: [number, number, string][] = [[2.5, 0, "2"], [-2.5, 0, "-2"], [3.5, 0, "4"], [0.125, 2, "0.12"], [2.675, 2, "2.67"], [-0.001, 2, "-0.00"]];
  for (const [value, decimals, text] of rounded) expect(fixed(value, decimals)).toBe(text);
  const short: [number, number, string][] = [[1.2345e-5, 3, "1.23e-05"], [1e-5, 1, "1e-05"], [0.0001, 1, "0.0001"], [12345, 3, "1.23e+04"], [999.6, 3, "1e+03"], [0.5, 3, "0.5"], [0, 3, "0"]];
  for (const [value, digits, text] of short) expect(general(value, digits)).toBe(text);
});
