"""Does relevance that goes through a long answer find what it rests on? Recursive against a single pass, in SmolLM2.

    python examples/models.py fetch smollm2
    python benchmarks/answers/two_hop.py            (goes on where it was stopped)
    python benchmarks/answers/two_hop.py --report   (the tables of what is there)

**Cases.** Prompts of about 80 tokens with two chains of two facts ("Mary has a friend called John. ... John lives in
Paris.") among sentences that say nothing of them, and a question. The answer is given, and has about 50, 100, 200 or 500
tokens: it names both hops ("The friend of Mary is John. ... John lives in Paris. ... So the friend of Mary lives in
Paris") among further such sentences. Only those count whose last token, the answer, is the one that SmolLM2 finds most
likely. Prompts that ask about one person are a group; intervals and tests go by groups.

**Explained** is the last token. `recursive`: its relevance through the answer (`answer_relevance(...,
through="answer")`); `recursive, no first token`: the same with nothing through the first token of the prompt; `single`:
one backward. By `attnlrp` and by `gradient` (gradient x input), and a random order.

**Recall, mass.** Gold are the person in the first fact and the place in the second. Recall at 10 % and the share of
positive relevance, both over tokens of the prompt alone.

**RISE, MAS.** Tokens of the prompt become random ones, the most relevant first, in 8 steps, and the text of the answer
stays. The last word alone would hardly fall, since the model can copy it from the answer. So the number is the
log-probability of the whole answer given the prompt, as in FlashTrace (arXiv 2602.01914); and beside it that of the
named words alone (the person in the first hop, the place in the second and at the end), since most of the answer does
not depend on the prompt.

A case takes about 16, 45, 110 and 450 CPU seconds at 50, 100, 200 and 500 tokens, and as much again for `gradient,
recursive`, which comes last.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

import lxt_fx
from lxt_fx.referee.answers import Answers
from lxt_fx.referee.case import Subject
from lxt_fx.referee.contest import Judged, NotForThisError
from lxt_fx.referee.metrics.gold import GoldMass, GoldRecall
from lxt_fx.referee.metrics.removal import Deletion, MagnitudeAligned
from lxt_fx.referee.tasks.reading import read
from lxt_fx.referee.tasks.replacements import TokenDraws, text_replacements

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
from answered_hops import AnsweredCase, answered, drawn  # noqa: E402
from two_hop_report import tables  # noqa: E402

import models  # noqa: E402

COUNTS = {50: 140, 100: 40, 200: 15, 500: 6}
"""So many cases by the length of their answers, by default."""

PROMPT, POOL, SEED = 80, 300, 0
LAST = slice(-1, None)

ROUNDS = (("attnlrp", "gradient single", "random"), ("gradient recursive",))
"""What explains all cases before the next one starts: the last of them costs as much as all others together. A table alone
gives the recursive relevance and the single pass."""

METRICS = {"recall at 10 %": GoldRecall(), "gold mass": GoldMass()}
CURVES = {"RISE": Deletion(), "MAS": MagnitudeAligned()}


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """The model, and what it was transformed to by each table."""

    subject: Subject
    explained: Mapping[str, Any]

    def relevance(self, asked: AnsweredCase, what: str) -> dict[str, Tensor]:
        """By method, the relevance of each token of prompt and answer [tokens]."""
        if what == "random":
            chance = torch.Generator().manual_seed(int(asked.case.key, 16) % 2**31)
            return {"random": torch.rand(len(asked.ids), generator=chance, dtype=torch.float64)}
        table, _, part = what.partition(" ")
        prompt, answer = list(asked.ids[: asked.prompt]), list(asked.ids[asked.prompt :])
        if part == "single":
            before = {"input_ids": torch.tensor([asked.ids[:-1]])}
            once = lxt_fx.explain(self.explained[table], None, before, asked.ids[-1]).relevance.double().flatten()
            return {f"{table}, single": torch.cat([once, once.new_zeros(1)])}
        found = lxt_fx.answer_relevance(self.explained[table], None, prompt, answer, through="answer", of=LAST)
        assert found.matrix is not None, "it was just made"
        first = lxt_fx.RecursiveAnswer.of(found.matrix, LAST, without="first").relevance
        recursive = {f"{table}, recursive": found.relevance, f"{table}, recursive, no first token": first}
        return recursive if part else recursive | {f"{table}, single": found.single.relevance.double().flatten()}


def judged(asked: AnsweredCase, relevance: Mapping[str, Tensor], pool: frozenset[int]) -> dict[str, dict[str, float]]:
    """By method, every metric; a curve is missing where the number hardly falls when the whole prompt is replaced."""
    number = asked.case.value
    named_ids = frozenset(number.ids[number.marked].tolist())  # type: ignore[attr-defined]
    draws = text_replacements(asked.subject, asked.case, TokenDraws(pool, named_ids, 1, SEED))
    whole = Answers(asked.subject, asked.case, draws, batch=4)
    found = {}
    for method, each in relevance.items():
        one = Judged(asked.subject, asked.case, each, whole, _not_again)
        found[method] = {name: metric.of(one) for name, metric in METRICS.items()}
        found[method] |= _curves(one, "whole answer")
        named = replace(one, answers=_of_named(whole, number.named))  # type: ignore[attr-defined]
        found[method] |= _curves(named, "named words")
    return found


def _curves(one: Judged, what: str) -> dict[str, float]:
    found = {}
    for name, metric in CURVES.items():
        try:
            found[f"{name}, {what}"] = metric.of(one)
        except NotForThisError:
            continue
    return found


def _of_named(whole: Answers, named: Sequence[Tensor]) -> Answers:
    """The numbers of the named words for the variants that ran: they were noted in the order in which these ran."""
    values = torch.cat(list(named)).tolist()
    return replace(whole, known=dict(zip(whole.known, values, strict=True)))


def _not_again(subject: Subject) -> Tensor:
    raise AssertionError(f"no metric here explains {subject.name} again")


def measure(study: Study, asked: AnsweredCase, missing: Sequence[str], pool: frozenset[int]) -> dict[str, Any]:
    """What one line of the file says: a case explained by what is missing."""
    relevance, seconds = dict[str, Tensor](), dict[str, float]()
    for what in missing:
        start = process_time()
        relevance |= study.relevance(asked, what)
        seconds[what] = process_time() - start
    return {
        "case": asked.case.key, "group": asked.case.group, "tokens": len(asked.ids) - asked.prompt, "prompt": asked.prompt,
        "hops": asked.hops, "explained": list(missing), "seconds": seconds, "values": judged(asked, relevance, pool),
    }  # fmt: skip


def pool_of(tokenizer: Any, length: int) -> frozenset[int]:
    """The tokens that removed ones become: those of prompts of the task."""
    texts = (hops.prompt for hops in islice(drawn(length, PROMPT, tokenizer, SEED), POOL))
    return frozenset(token for text in texts for token in read(tokenizer, text).ordinary)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """What is there already; a line that was not written whole is dropped, and measured again."""
    if not path.exists():
        return []
    whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def run(study: Study, counts: Mapping[int, int], path: Path, console: Console) -> None:
    """Appends a line for each case that the file has not, a round after the other."""
    known = {(line["case"], what) for line in lines_of(path) for what in line["explained"]}
    for once in ROUNDS:
        for length, count in counts.items():
            pool = pool_of(study.subject.processor, length)
            for place, asked in enumerate(answered(study.subject, length, PROMPT, count, SEED), 1):
                missing = [what for what in once if (asked.case.key, what) not in known]
                if missing:
                    line = {"length": length} | measure(study, asked, missing, pool)
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    console.print(f"{', '.join(missing)}: answers of {length} tokens, {place} of {count}")


def main(
    out: Annotated[Path, typer.Option(help="The file that lines are appended to.")] = Path("two_hop.jsonl"),
    lengths: Annotated[str, typer.Option(help="Lengths of answers and how many cases, as 50:100,100:60.")] = "",
    report: Annotated[bool, typer.Option("--report", help="Measure nothing, show what is there.")] = False,
) -> None:
    """Measure recursive relevance beside a single pass on answers of several lengths."""
    console = Console()
    if not report:
        torch.set_num_threads(1)
        model, tokenizer = models.load("smollm2")
        tables_of = {table: lxt_fx.transform(model, rules=table) for table in ("attnlrp", "gradient")}
        counts = {int(each.split(":")[0]): int(each.split(":")[1]) for each in lengths.split(",") if each} or COUNTS
        run(Study(Subject("smollm2", model, "language", tokenizer), tables_of), counts, out, console)
    console.print("\n".join(tables(lines_of(out))), soft_wrap=True, markup=False)


if __name__ == "__main__":
    typer.run(main)
