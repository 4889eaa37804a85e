import { expect, test } from "vitest";
import { field } from "../src/csv";
import { contrast, SCALES, cell, mixed } from "../src/colour";
import { readSaved, savedIn } from "../src/saved";
import { found } from "../src/shown";
import { amount, direction, ordinal, percent, signed, spoken } from "../src/words";

test("numbers are written for a person", () => {
  expect([17.371, 0.824, -0.095, 0, 1234.5, 1e-5].map(amount)).toEqual(["17.4", "0.82", "−0.095", "0.00", "1235", "1.00e−5"]);
  expect([0.82, 0, -3].map(signed)).toEqual(["+0.82", "0", "−3.00"]);
  expect(spoken(0.82)).toBe("relevance plus 0.82, for");
  expect(spoken(-1.5)).toBe("relevance minus 1.50, against");
  expect([0.37, -0.0034, 0].map(percent)).toEqual(["37 %", "−0.3 %", "0 %"]);
  expect([1, 2, 3, 11, 22, 112].map(ordinal)).toEqual(["1st", "2nd", "3rd", "11th", "22nd", "112th"]);
});

test("fields of CSV are quoted, and no formula runs", () => {
  expect(["a", " b", 'c"d', "e,f", "↵", "-0.5", "=1+1", "@x"].map(field)).toEqual(["a", '" b"', '"c""d"', '"e,f"', "↵", "-0.5", "'=1+1", "'@x"]);
});

test("a saved explanation is read", async () => {
  const saved = {
    format: 1, explained: "logit of ' Paris'", value: 17.4, label: " Paris", sum: 6, part: "text", kind: "text", axes: ["position"],
    tokens: ["The", " capital"], input_ids: [1, 2], special: [false, false], segments: [0, 0], answer_tokens: 0, text: null, spans: null,
    dtype: "float32", relevance: [0.5, 1.5], further_parts: [], rules: "attnlrp", model_class: "Llama", checkpoint: "", versions: {}, seconds: 1,
    account: null,
  };
  expect(savedIn(saved)).toHaveLength(1);
  expect(savedIn({ explanations: [saved, saved] })).toHaveLength(2);
  expect(savedIn({ explanations: [saved, {}] })).toBe(null);
  expect(savedIn({ format: 1, results: [] })).toBe(null);
  const result = await readSaved(saved, "a.json");
  expect(result).toMatchObject({ title: "The capital", numbers: [{ label: " Paris", value: 17.4 }] });
  const account = { value: 17.4, reached: { text: 6 }, took: { "softmax offset": 11.4 }, residual: 0 };
  expect((await readSaved({ ...saved, account }, "a.json")).account?.sentences[0]).toBe("of 17.4: 6.0 reaches the tokens, 11.4 is the softmax offset");
  expect((await readSaved({ ...saved, tokens: [" 🦙(1/2)", "🦙(2/2)"] }, "a.json")).title).toBe("🦙");
  expect(result.parts[0]).toMatchObject({ several: false, words: [[0, 1], [1, 2]], values: { shape: [2] } });
  await expect(readSaved({ ...saved, format: 9 }, "a.json")).rejects.toThrow("format 9");
});

test("a search goes across tokens", () => {
  const part = { part: { kind: "text" }, texts: ["The", " cap", "ital", " of"] } as unknown as Parameters<typeof found>[0];
  expect(found(part, "CAPITAL")).toEqual([1, 2]);
  expect(found(part, "xyz")).toEqual([]);
});

test("directions are those of the first letter", () => {
  expect([" שלום", " السلام", "and", " 12 ", "!"].map(direction)).toEqual(["rtl", "rtl", "ltr", null, null]);
});

test("colours are those of Python, and ink is readable on all of them", () => {
  expect(mixed(SCALES.light, 0)).toBe("#ffffff");
  const shares = [-0.75, -0.25, 0.5, 0.1];
  expect(shares.map((share) => mixed(SCALES.light, share))).toEqual(["#578aca", "#c6d8ef", "#e49690", "#fbeae8"]);
  expect(shares.map((share) => mixed(SCALES.dark, share))).toEqual(["#4175b6", "#2a3c52", "#823938", "#31272a"]);
  for (const theme of ["light", "dark"] as const) {
    for (let step = -64; step <= 64; step++) {
      const { background, ink } = cell(theme, step / 64);
      expect(contrast(ink, background)).toBeGreaterThan(4.5);
    }
  }
});
