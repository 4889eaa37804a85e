import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { type Ends, scaled } from "../src/scale";

interface Case {
  ends: Ends;
  values: number[];
  counts: boolean[];
  end: number;
  beyond: number;
  shares: number[];
}

const cases = JSON.parse(readFileSync("../tests/browser/scale_cases.json", "utf8")) as Case[];

test("the scale is the one that Python has", () => {
  expect(cases.length).toBeGreaterThan(50);
  for (const one of cases) {
    const found = scaled(one.values, one.counts, one.ends);
    expect(found.end, JSON.stringify(one)).toBe(one.end);
    expect(found.beyond, JSON.stringify(one)).toBe(one.beyond);
    one.shares.forEach((share, at) => expect(found.shares[at]).toBeCloseTo(share, 8));
  }
});

test("one strong token does not take all colour", () => {
  const france = [0.784, 0.558, 0.618, 0.824, 3.644];
  const found = scaled(france, [true, true, true, true, true], "robust");
  expect(found).toMatchObject({ end: 0.824, beyond: 1, largest: 3.644 });
  expect(found.shares[3]).toBe(1);
});
