"""`lxt-fx plan`: what explanations of a model cost on devices, without its weights."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from lxt_fx.shell import options
from lxt_fx.shell.exits import UsageMistake
from lxt_fx.shell.options import DtypeName
from lxt_fx.shell.outputs import checked

if TYPE_CHECKING:
    from lxt_fx.passes.segments.recompute import Checkpoint


class HalfDtypes(StrEnum):
    """What a model that has no weights yet computes in, and the short names of that."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class ScheduleName(StrEnum):
    """The schedules of a pipeline: `lxt_fx.planning.stage_costs.Schedule`, which would import torch for `--help`."""

    one_by_one = "1f1b"
    gpipe = "gpipe"


LONG = {"bf16": DtypeName.bfloat16, "fp16": DtypeName.float16, "fp32": DtypeName.float32}

Shape = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A folder with config.json, or llama-7b, llama-8b, llama-70b, qwen3-moe-30b.",
    ),
]  # fmt: skip
DevicesText = Annotated[
    str, typer.Option("--devices", metavar="NxSIZE", help="Such as 8x80GB, 4xH100, 24GB, RTX4090.")
]
Tokens = Annotated[int, typer.Option("--tokens", metavar="N", min=1, help="Tokens of a text.")]
Batch = Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Texts of a micro-batch.")]
Targets = Annotated[int, typer.Option("--targets", metavar="N", min=1, help="Targets of each text.")]
MicroBatches = Annotated[int, typer.Option("--micro-batches", metavar="N", min=1, help="Micro-batches of a pipeline.")]
Stages = Annotated[
    int | None, typer.Option("--stages", metavar="N", min=1, help="Stages. Default: what explains the most an hour.")
]
ScheduleChoice = Annotated[
    ScheduleName, typer.Option("--schedule", help="Each backward as soon as it can run, or behind all forwards.")
]
CheckpointText = Annotated[
    str | None, typer.Option("--checkpoint", metavar="HOW", help="layers, sqrt, or layers of a segment. Default: none.")
]
Bits = Annotated[int | None, typer.Option("--bits", metavar="4|8", help="Count matrices of the layers as packed.")]
Flops = Annotated[float | None, typer.Option("--flops", metavar="X", help="Flops a second of a device, such as 4e14.")]
Bandwidth = Annotated[
    float | None, typer.Option("--bandwidth", metavar="X", help="Bytes a second between two devices, such as 5e10.")
]
Efficiency = Annotated[float, typer.Option("--efficiency", metavar="X", help="The share of the flops that is reached.")]
Dtype = Annotated[HalfDtypes, typer.Option("--dtype", help="What the model computes in.")]


def plan_command(
    model: Shape,
    devices: DevicesText = "1x80GB",
    tokens: Tokens = 512,
    batch: Batch = 1,
    targets: Targets = 1,
    micro_batches: MicroBatches = 16,
    stages: Stages = None,
    schedule: ScheduleChoice = ScheduleName.one_by_one,
    checkpoint: CheckpointText = None,
    bits: Bits = None,
    dtype: Dtype = HalfDtypes.bfloat16,
    flops: Flops = None,
    bandwidth: Bandwidth = None,
    efficiency: Efficiency = 0.4,
    json: options.Json = None,
    show: options.Show = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Plan a model on devices: parameters, flops and memory by part, the split into stages, the peak of each device, and
    explanations an hour. No weights are read: the model is built as shapes, rewritten, and counted.

    **Examples**

    - `lxt-fx plan llama-70b --devices 8x80GB`
    - `lxt-fx plan ./my-model --devices 2x24GB --tokens 2048 --checkpoint layers`
    - `lxt-fx plan qwen3-moe-30b --devices 4xA100 --bits 4 --json -`
    """
    outputs = checked({"json": json}, force=force, quiet=quiet, show=show)
    cut = _checkpoint(checkpoint)

    import torch

    from lxt_fx.planning.devices import devices_of
    from lxt_fx.planning.plan import plan

    chosen = devices_of(devices, flops, bandwidth)
    found = plan(
        model, chosen, tokens=tokens, batch=batch, targets=targets, micro_batches=micro_batches, stages=stages,
        schedule=schedule.value, checkpoint=cut, bits=bits, dtype=getattr(torch, LONG.get(dtype, dtype)),
        efficiency=efficiency,
    )  # fmt: skip
    outputs.show(found)
    outputs.one_json(found.to_dict(), found.to_json)


def _checkpoint(written: str | None) -> Checkpoint:
    if written is None or written == "none":
        return None
    if written == "layers":
        return "layers"
    if written == "sqrt":
        return "sqrt"
    if written.isascii() and written.isdigit() and int(written) > 0:
        return int(written)
    raise UsageMistake(f"--checkpoint {written!r} is none of layers, sqrt, none, and no number from 1 on")
