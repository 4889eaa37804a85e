"""How many samples a second does explain_corpus explain, beside a plain loop over the same samples?

    python benchmarks/corpora/rate.py                    (2,774 paragraphs of Wikipedia, SmolLM2-135M; hours on one core)
    python benchmarks/corpora/rate.py --rows 200         (fewer)
    python benchmarks/corpora/rate.py --chunks 2         (two chunks by each method, all rows by workers)
    python benchmarks/corpora/rate.py --again            (the table of what is there)

One thread. The paragraphs are cut into chunks, and each method explains a chunk in turn, in an order that turns round from
chunk to chunk; what was measured stands in a file of JSON lines, and a run that was stopped goes on behind it.

**Methods.** `loop`: `lxt_fx.explain(model, tokenizer, text)` for one text after another, results in memory. The model is
given as it is, so it is compared with its module on each text: a quarter of the rate of the others (left out by `--methods
batches,corpus`). `batches`: what a person writes who knows the library: texts sorted by length in batches of as many tokens
as ours, by a module of `transform`. `corpus`: `explain_corpus` in one process, into a new folder, with all that it does
(keys, hashes of the weights, files). `workers`: the same with two workers, over all rows at once and after the others, so
that nothing else runs; with the start of Ray, and without it: from the first part that is written to the last.

Every chunk is a new call of `corpus`, which hashes the weights and writes a header (about a second): over a whole corpus
that is once.

**Rows.** Samples a second of each method; the ratio of `corpus` to the faster of both loops, chunk by chunk, with the
geometric mean; and for `workers` samples a second and worker beside `loop`. Wanted: 0.9.

Needs the fetched smollm2 and texts: python3 dev.py models smollm2 texts; pyarrow, for workers Ray, and a quiet machine.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import lxt_fx  # noqa: E402
import models  # noqa: E402
from lxt_fx.corpora.wanted import TOKENS  # noqa: E402

LOOPS = ("loop", "batches")
METHODS = (*LOOPS, "corpus")
WORKERS = 2


def loop(model: Any, tokenizer: Any, texts: Sequence[str]) -> int:
    """One text after another."""
    return len([lxt_fx.explain(model, tokenizer, text) for text in texts])


def in_batches(model: Any, tokenizer: Any, texts: Sequence[str]) -> int:
    """Batches of a person's own."""
    explained = lxt_fx.transform(model)
    found: list[Any] = []
    for batch in batches(tokenizer, texts):
        found += lxt_fx.explain(explained, tokenizer, batch)
    return len(found)


def batches(tokenizer: Any, texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts by length, with at most `TOKENS` tokens in a batch."""
    batch: list[str] = []
    for length, text in sorted((len(tokenizer(text)["input_ids"]), text) for text in texts):
        if batch and (len(batch) + 1) * length > TOKENS:
            yield batch
            batch = []
        batch.append(text)
    yield batch


def corpus(model: Any, tokenizer: Any, texts: Sequence[str]) -> int:
    """Ours, in this process."""
    with TemporaryDirectory() as folder:
        return len(lxt_fx.explain_corpus(model, tokenizer, texts, folder=Path(folder) / "explained"))


def by_workers(model: Any, tokenizer: Any, texts: Sequence[str]) -> dict[str, Any]:
    """Ours, with workers: the seconds with their start, and between the first part and the last with the samples of it."""
    with TemporaryDirectory() as place:
        folder = Path(place) / "explained"
        start = time.perf_counter()
        found = lxt_fx.explain_corpus(model, tokenizer, texts, folder=folder, workers=WORKERS)
        seconds = time.perf_counter() - start
        ends = sorted((part.stat().st_mtime, part) for part in (folder / "parts").glob("*.parquet"))
        first = len(found.to_table(["key"])) - sum(len(keys_of(part)) for _, part in ends[1:])
        between = {"samples": len(found) - first, "seconds": ends[-1][0] - ends[0][0]}
    return {"method": "workers", "samples": len(found), "seconds": seconds, "between": between}


def keys_of(part: Path) -> Any:
    """The keys of one part."""
    from pyarrow import parquet

    return parquet.read_table(part, columns=["key"])["key"]


RUNS: dict[str, Callable[[Any, Any, Sequence[str]], int]] = {"loop": loop, "batches": in_batches, "corpus": corpus}


def measured(
    out: Path, texts: Sequence[str], chunks: Sequence[Sequence[str]], methods: Sequence[str], workers: bool
) -> None:
    """Measures what is not in the file yet: each chunk by each method, and all texts by workers."""
    rows = read(out)
    known = {(row["chunk"], row["method"]) for row in rows}
    model, tokenizer = models.load("smollm2")
    for method in methods:  # the first call of each captures and compiles
        RUNS[method](model, tokenizer, texts[:2])
    for number, chunk in enumerate(chunks):
        for method in methods if number % 2 else methods[::-1]:
            if (number, method) in known:
                continue
            start = time.perf_counter()
            count = RUNS[method](model, tokenizer, chunk)
            row = {"chunk": number, "method": method, "samples": count, "seconds": time.perf_counter() - start}
            write(out, row)
            print(row, flush=True)
    if workers and (-1, "workers") not in known:
        write(out, {"chunk": -1, **by_workers(model, tokenizer, texts)})


def read(out: Path) -> list[dict[str, Any]]:
    """What was measured."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []


def write(out: Path, row: dict[str, Any]) -> None:
    """Adds a line."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")


def report(rows: Sequence[dict[str, Any]]) -> Table:
    """The table."""
    table = Table("method", "samples", "a second", "beside the faster loop")
    by_chunk: dict[int, dict[str, float]] = defaultdict(dict)
    for row in rows:
        by_chunk[row["chunk"]][row["method"]] = row["samples"] / row["seconds"]
    whole = [chunk for at, chunk in by_chunk.items() if at >= 0 and "corpus" in chunk and len(chunk) > 1]
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        rate = sum(row["samples"] for row in own) / max(sum(row["seconds"] for row in own), 1e-9)
        ratios = [chunk[method] / fastest(chunk) for chunk in whole if method in chunk]
        said = "" if not ratios else f"{mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        table.add_row(method, str(sum(row["samples"] for row in own)), f"{rate:.3g}", said)
    faster = mean([fastest(chunk) for chunk in whole]) if whole else math.nan
    for row in rows:
        if row["method"] == "workers":
            for name, part in (("2 workers, with the start", row), ("2 workers, between parts", row["between"])):
                rate = part["samples"] / max(part["seconds"], 1e-9)
                said = f"{rate / WORKERS / faster:.2f} for each worker"
                table.add_row(name, str(part["samples"]), f"{rate:.3g}", said)
    return table


def fastest(chunk: Mapping[str, float]) -> float:
    """Samples a second of the faster loop."""
    return max(chunk[name] for name in LOOPS if name in chunk)


def mean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def main(
    rows: Annotated[int, typer.Option(help="How many paragraphs.")] = 2774,
    size: Annotated[int, typer.Option(help="How many of them are a chunk.")] = 256,
    chunks: Annotated[int | None, typer.Option(help="How many chunks are measured by each method; all by default.")] = None,
    methods: Annotated[str, typer.Option(help="Which methods, separated by commas.")] = ",".join(METHODS),
    out: Annotated[Path, typer.Option(help="The file of what was measured.")] = ROOT / "out/corpora_rate.jsonl",
    workers: Annotated[bool, typer.Option(help="Measure two workers too.")] = True,
    again: Annotated[bool, typer.Option(help="Only print what is there.")] = False,
) -> None:
    """Measures, and prints the table."""
    chosen = methods.split(",")
    if unknown := [method for method in chosen if method not in METHODS]:
        raise typer.BadParameter(f"{', '.join(unknown)}; there are {', '.join(METHODS)}", param_hint="--methods")
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not again:
        texts = [text for _, text in models.wiki_paragraphs()][:rows]
        cut = [texts[start : start + size] for start in range(0, len(texts), size)][:chunks]
        measured(out, texts, cut, chosen, workers)
    Console().print(report(read(out)))


if __name__ == "__main__":
    typer.run(main)
