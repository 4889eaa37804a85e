"""How long does transform take, stage by stage, and is it linear in the size of the graph?

    python benchmarks/transform_time.py           (two minutes; --quick: less than one)

Random Llamas of 2 to 80 layers, with a small hidden size since only the graph counts, and SmolLM2 if it was fetched.
Capture is the time of torch.export; everything after it is ours. Python's garbage collector is off in between: its
pauses, of 0.3 to 0.5 seconds, would strike one stage or another. Of several rounds, the one with the least time after
capture is shown.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import lxt_fx

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import models  # noqa: E402

LAYERS = (2, 8, 30, 80)
NOT_OURS = ("example", "capture")
"""Stages that run the model, and torch.export."""


@dataclass(frozen=True, slots=True)
class Row:
    """One transform. `nodes` are those of the captured graph; `seconds` are by stage, `total` is by the clock."""

    model: str
    dynamic: bool
    nodes: int
    seconds: dict[str, float]
    total: float
    forward_difference: float

    @property
    def after_capture(self) -> float:
        """The whole transform less its example and capture."""
        return self.total - sum(self.seconds[stage] for stage in NOT_OURS)

    @property
    def rest(self) -> float:
        """What no stage counts: the graphs kept for `show`, and the record."""
        return self.total - sum(self.seconds.values())

    @property
    def milliseconds_a_node(self) -> float:
        return 1000 * self.after_capture / self.nodes


def random_llama(layers: int) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=layers,
    )
    return LlamaForCausalLM(config).eval()


def measure(name: str, model: nn.Module, dynamic: bool) -> Row:
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    explained = lxt_fx.transform(model, dynamic=dynamic)
    total = time.perf_counter() - start
    gc.enable()
    record = explained.record
    nodes = len(record.stages["capture"].graph.nodes)
    return Row(name, dynamic, nodes, dict(record.seconds), total, record.forward_difference)


def table_of(rows: list[Row]) -> Table:
    table = Table(title="seconds of transform, by stage", box=None, padding=(0, 1))
    table.add_column("model")
    for heading in ("nodes", *rows[0].seconds, "rest", "after capture", "ms a node", "total"):
        table.add_column(heading, justify="right")
    for row in rows:
        shown = [
            f"{second:.2f}" for second in (*row.seconds.values(), row.rest, row.after_capture, row.milliseconds_a_node)
        ]
        sizes = "dynamic" if row.dynamic else "static"
        table.add_row(f"{row.model}, {sizes}", str(row.nodes), *shown, f"{row.total:.1f}")
    return table


def main(
    out: Annotated[Path, typer.Option(help="The folder for transform_time.json.")] = Path("out"),
    quick: Annotated[bool, typer.Option("--quick", help="Only Llamas of 2 and 8 layers.")] = False,
    rounds: Annotated[int, typer.Option(help="How often each model is transformed.")] = 1,
) -> None:
    """Time every stage of transform on models of several sizes."""
    torch.set_num_threads(1)  # such small models run no faster on two, and much slower beside other work
    named: list[tuple[str, nn.Module]] = [
        (f"Llama, {n} layers", random_llama(n)) for n in (LAYERS[:2] if quick else LAYERS)
    ]
    if not quick and (models.cache_folder() / "smollm2").is_dir():
        named.append(("SmolLM2, 30 layers", models.load("smollm2")[0]))
    lxt_fx.transform(random_llama(1))  # the first transform of a process also imports torch.export
    console = Console(width=None if sys.stdout.isatty() else 170)
    runs = [(name, model, dynamic) for name, model in named for dynamic in (True, False)]
    with Progress(console=console) as progress:
        measured = [measure(*run) for run in progress.track(runs * rounds, description="transform")]
    rows = [min(measured[i :: len(runs)], key=lambda row: row.after_capture) for i in range(len(runs))]
    console.print(table_of(rows))
    out.mkdir(parents=True, exist_ok=True)
    found = [
        asdict(row) | {"rest": row.rest, "after_capture": row.after_capture, "ms_a_node": row.milliseconds_a_node}
        for row in rows
    ]
    Path(out, "transform_time.json").write_text(json.dumps(found, indent=1))
    console.print(f"wrote {out / 'transform_time.json'}")


if __name__ == "__main__":
    typer.run(main)
