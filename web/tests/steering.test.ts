import { expect, test } from "vitest";
import { type Latent, type Unit, pack } from "../src/payload";
import { leftOutOf, unitsOf } from "../src/routes";
import { type Change, changeSaid, changed, changesOf, steerOf, steeredSaid } from "../src/steering";

const off = (unit: number | null, place = "mlp.3.neurons"): Change => ({ place, unit, by: "scale", amount: 0 });

test("changes go to the server by place and come back as they were", () => {
  const changes = [off(17), off(5), { ...off(2), by: "value" as const, amount: 1.5 }, off(1, "attention.0.heads")];
  const steer = steerOf(changes);
  expect(steer).toEqual({
    "mlp.3.neurons": [{ units: [17, 5], scale: 0 }, { units: [2], value: 1.5 }],
    "attention.0.heads": { units: [1], scale: 0 },
  });
  expect(changesOf(steer)).toEqual(changes);
  expect(steerOf([off(null)])).toEqual({ "mlp.3.neurons": { scale: 0 } });
  expect(changesOf({ a: { scale: 2 } })).toEqual([{ place: "a", unit: null, by: "scale", amount: 2 }]);
});

test("a unit that was changed is changed anew", () => {
  const twice = { ...off(17), amount: 2 };
  expect(changed([off(17), off(5)], twice)).toEqual([off(5), twice]);
  expect(changed([off(17)], off(17, "mlp.4.neurons"))).toHaveLength(2);
});

test("changes are said", () => {
  expect(changeSaid(off(17))).toBe("unit 17 of mlp.3.neurons off");
  expect(changeSaid({ ...off(1, "attention.0.heads"), amount: 2 })).toBe("head 1 of attention.0.heads times 2");
  expect(changeSaid({ ...off(null), by: "value", amount: -1 })).toBe("all of mlp.3.neurons set to -1");
  expect(steeredSaid([{ place: "m", units: [1, 2, 3, 4], scale: 0 }])).toBe("with unit 1 of m off, unit 2 of m off, unit 3 of m off and 1 more");
  expect(steeredSaid([{ place: "m", units: null, value: 3 }])).toBe("with all of m set to 3");
  expect(steeredSaid([])).toBe("");
});

function unit(number: number, at: number, byPosition: number[]): Unit {
  const relevance = byPosition.reduce((a, b) => a + b, 0);
  return { number, place: "mlp.0", unit: at, relevance, activation: 1, label: null, by_position: pack(byPosition, [byPosition.length]) };
}

test("units of a contrast are the difference where both numbers have them", () => {
  const units = [unit(0, 7, [1, 2]), unit(1, 7, [0.5, 4]), unit(0, 8, [9, 9]), unit(1, 9, [1, 1]), unit(2, 7, [100, 100])];
  const latent: Latent = { part: 0, layers: [], stream: null, heads: null, units };
  const contrast = unitsOf(latent, { plus: [0], minus: [1] }, null, 8);
  expect(contrast.found.map(({ unit, here }) => [unit.unit, here, unit.activation])).toEqual([[7, -1.5, null]]);
  expect(contrast.unknown).toBe(2);
  expect(unitsOf(latent, { plus: [0], minus: [1] }, [0, 1], 8).found[0]!.here).toBe(0.5);
  const alone = unitsOf(latent, { plus: [0], minus: [] }, null, 8);
  expect(alone.found.map(({ unit, here }) => [unit.unit, here, unit.activation])).toEqual([[8, 18, 1], [7, 3, 1]]);
  expect(alone.unknown).toBe(0);
});

test("what the map of routes leaves out is summed layer by layer", () => {
  const values = Float64Array.from([1, 2, 4, 10, 20, 40, 100, 200, 400]);
  expect(leftOutOf({ rows: 3, columns: 3, values }, [false, true, false])).toEqual([5, 500]);
  expect(leftOutOf({ rows: 3, columns: 3, values }, [true, true, true])).toEqual([0, 0]);
});
