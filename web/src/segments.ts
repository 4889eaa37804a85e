// Words and sentences as ranges of tokens: the definitions of lxt_fx/results/words.py, for files that are read without Python.
// tests/browser/word_cases.json has cases in which both must agree.
import type { Span } from "./payload";

interface Reading {
  tokens: string[];
  special: boolean[];
  segments: number[];
  answer: number;
}

const UNSPACED: [number, number][] = [
  [0x0e00, 0x0eff], [0x0f00, 0x109f], [0x1780, 0x17ff], [0x3040, 0x30ff], [0x31f0, 0x31ff], [0x3400, 0x4dbf],
  [0x4e00, 0x9fff], [0xf900, 0xfaff], [0xff66, 0xff9f], [0x20000, 0x3ffff],
];
const JOINER = "\u200d";
const SPACE = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]/; // what Python's isspace says
const END = new RegExp(`[.!?…]+["'”’»)\\]]*(?=${SPACE.source})|[。！？]+[」』”’）]*|↵+`, "gu");
const TITLES = new Set(["mr", "mrs", "ms", "dr", "prof", "st", "vs", "cf", "fig", "eq", "no", "e.g", "i.e"]);

type Letter = [character: string, token: number];

export function wordsOf(reading: Reading): Span[] {
  const letters = lettersOf(reading);
  const joined = new Set<number>();
  shownAlone(reading.tokens).forEach((token, at) => {
    if (token === "" && reading.tokens[at] !== "") joined.add(at);
  });
  for (let at = 1; at < letters.length; at++) {
    const [before, token] = [letters[at - 1]![1], letters[at]![1]];
    if (token !== before && continues(letters, at)) for (let one = before + 1; one <= token; one++) joined.add(one);
  }
  return ranges(reading, joined);
}

export function sentencesOf(reading: Reading): Span[] {
  const letters = lettersOf(reading);
  const text = letters.map(([character]) => character).join("");
  const offsets: number[] = [];
  let offset = 0;
  for (const [character] of letters) {
    offsets.push(offset);
    offset += character.length;
  }
  const starts = new Set<number>();
  for (const end of text.matchAll(END)) {
    const stop = end.index + end[0].length;
    const following = letters.findIndex(([c], at) => offsets[at]! >= stop && !(SPACE.test(c) || c === "↵"));
    if (following >= 0 && endsSentence(text, end, letters[following]![0])) starts.add(letters[following]![1]);
  }
  const joined = new Set<number>();
  for (let at = 1; at < reading.tokens.length; at++) if (!starts.has(at)) joined.add(at);
  return ranges(reading, joined);
}

function ranges(reading: Reading, joined: Set<number>): Span[] {
  const { tokens, special, segments, answer } = reading;
  const found: Span[] = [];
  tokens.forEach((_, at) => {
    const cut =
      at === 0 ||
      !joined.has(at) ||
      special[at] ||
      special[at - 1] ||
      segments[at] !== segments[at - 1] ||
      at === tokens.length - answer;
    if (cut) found.push([at, at + 1]);
    else found[found.length - 1]![1] = at + 1;
  });
  return found;
}

/** What each token adds to the text: of a character that several tokens share, the first gets the character. */
export function shownAlone(tokens: string[]): string[] {
  const found = [...tokens];
  for (let at = 0; at < found.length; at++) {
    const part = /^([\s\S]*)\(1\/(\d)\)$/.exec(found[at]!);
    if (part === null || part[1] === "") continue;
    const count = Number(part[2]);
    const bare = part[1]!.replace(/^ +/, "");
    const whole = count > 1 && Array.from({ length: count - 1 }, (_, k) => `${bare}(${k + 2}/${count})`).every((one, k) => found[at + 1 + k] === one);
    if (!whole) continue;
    found[at] = part[1]!;
    for (let k = 1; k < count; k++) found[at + k] = "";
    at += count - 1;
  }
  return found;
}

function lettersOf(reading: Reading): Letter[] {
  return shownAlone(reading.tokens).flatMap((token, at): Letter[] =>
    reading.special[at] ? [["\0", at]] : [...token].map((c): Letter => [c, at]),
  );
}

function continues(letters: Letter[], at: number): boolean {
  const [before, here] = [letters[at - 1]![0], letters[at]![0]];
  const after = letters[at + 1]?.[0] ?? " ";
  const earlier = letters[at - 2]?.[0] ?? " ";
  const [kind, last] = [kindOf(here), kindOf(before)];
  if (kind === "space" || last === "space") return false;
  if (kind === "mark" || before === JOINER) return true;
  if (kind === "word") return last === "word" || last === "mark" || inside(earlier, before, here);
  if (kind !== "sign") return false;
  return here === before || inside(before, here, after);
}

function inside(before: string, sign: string, after: string): boolean {
  if (sign === "'" || sign === "’") return kindOf(before) === "word" && kindOf(after) === "word";
  return (sign === "." || sign === ",") && /\p{Nd}/u.test(before) && /\p{Nd}/u.test(after);
}

function kindOf(c: string): "space" | "mark" | "character" | "word" | "sign" {
  if (SPACE.test(c) || "\0↵⇥".includes(c)) return "space";
  const code = c.codePointAt(0)!;
  if (/[\p{M}\p{Cf}]/u.test(c) || (code >= 0x1f3fb && code <= 0x1f3ff)) return "mark";
  if (UNSPACED.some(([low, high]) => low <= code && code <= high)) return "character";
  return /[\p{L}\p{N}_]/u.test(c) ? "word" : "sign";
}

function endsSentence(text: string, end: RegExpExecArray, following: string): boolean {
  if (!".!?…".includes(end[0][0]!)) return true;
  if (/\p{Lowercase}/u.test(following)) return false;
  const word = end[0] === "." ? text.slice(0, end.index).split(SPACE).filter(Boolean).pop() : undefined;
  if (word === undefined) return true;
  return !(([...word].length === 1 && /\p{Uppercase}/u.test(word)) || TITLES.has(word.toLowerCase()));
}

