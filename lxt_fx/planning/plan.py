"""`plan`: what a model costs on devices, how it is split over them, and how many explanations an hour that makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from lxt_fx.attribution.split_head import split_model
from lxt_fx.base.errors import InputError
from lxt_fx.base.progress import lasting, stage
from lxt_fx.base.torch_internals import io_of, pytree
from lxt_fx.base.transformers_internals import register_ops
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.transform import transform
from lxt_fx.ops.experts import grouped_matmul
from lxt_fx.ops.packed import packed_layer_of
from lxt_fx.passes.capture.opened_model import opened
from lxt_fx.passes.capture.settings import is_transformers
from lxt_fx.passes.segments.find_segments import segments_of
from lxt_fx.passes.segments.recompute import Checkpoint, check_checkpoint
from lxt_fx.planning.arrangement import (
    Load,
    Remedy,
    arranged,
    best,
    fewer_micro_batches,
    more_devices,
    offloaded,
)
from lxt_fx.planning.at_targets import Behind
from lxt_fx.planning.device_plan import DevicePlan, PartRow
from lxt_fx.planning.devices import Devices, devices_of
from lxt_fx.planning.example import example_of, written_sizes
from lxt_fx.planning.flop_formulas import formulas
from lxt_fx.planning.measured import Measured
from lxt_fx.planning.measured_parts import FakeRun
from lxt_fx.planning.parts import BEFORE, BEHIND, parts_of
from lxt_fx.planning.shapes import model_on_meta
from lxt_fx.planning.stage_costs import Schedule, check_schedule, pieces_of
from lxt_fx.planning.weights import Weights, weights_of

EFFICIENCY = 0.4
"""The share of a device's flops that large models reach in training (Chowdhery et al. 2022, PaLM, table 3: 0.46; Narayanan
et al. 2021: 0.3 to 0.5). An explanation has the same products of matrices."""

Counter = Callable[[Checkpoint], Measured]
"""The costs of the parts for a checkpoint."""

_COUNTED: WeakKeyDictionary[Explained, tuple[Graph, dict[Any, Measured]]] = WeakKeyDictionary()
"""What was counted of each module that is alive, with the graph that it ran."""


@lasting
def plan(
    model: Any,
    devices: str | Devices = "1x80GB",
    *,
    tokens: int = 512,
    batch: int = 1,
    targets: int = 1,
    micro_batches: int = 16,
    stages: int | None = None,
    schedule: Schedule = "1f1b",
    checkpoint: Checkpoint = None,
    bits: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    flops: float | None = None,
    bandwidth: float | None = None,
    efficiency: float = EFFICIENCY,
    on: Literal["cuda", "cpu"] = "cuda",
    inputs: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> DevicePlan:
    """What explanations of a model cost on devices: parameters, flops, saved bytes and what crosses borders, by part and by
    stage; how the model is split, the peak of each stage, and explanations an hour.

        print(lxt_fx.plan("llama-70b", "8x80GB"))

    `model` is an explained module, a transformers model, its config, a folder with a `config.json`, or the name of a shape
    (`llama-7b`, `llama-8b`, `llama-70b`, `qwen3-moe-30b`). No weights are needed: what is no module is built on the meta
    device in `dtype`. Nothing is computed; the graph runs on tensors without values.

    `devices` are so many of a size or a class: "8x80GB", "4xH100". `flops` (a second) and `bandwidth` (bytes a second
    between neighbours) take the place of what is known of the class; `efficiency` is the share of the flops that is
    reached. `on` says whether positions without a gradient are skipped behind the last attention, as on a CPU.

    A micro-batch has `batch` texts of `tokens` tokens, or the `inputs` by name that the model is called with. Each text has
    `targets` targets. `stages` fixes the number of stages; without it that with the most explanations an hour is chosen.
    Devices beyond hold copies. `schedule` is that of the pipeline, "1f1b" or "gpipe". `checkpoint` is as in `transform`; an
    explained module has its own, unless one is given. `bits` (4 or 8) counts the matrices of the layers as packed.
    `progress` is as in `lxt_fx.progress`, for this call.

    docs/scale.md has the formulas. Raises InputError for arguments that do not fit, and what `transform` raises.
    """
    chosen = devices if isinstance(devices, Devices) else devices_of(devices, flops, bandwidth)
    _check_numbers(tokens=tokens, batch=batch, targets=targets, micro_batches=micro_batches)
    _check_choices(efficiency, on, schedule)
    check_checkpoint(checkpoint)
    explained = _explained_of(model, dtype)
    given = example_of(explained, batch, tokens) if inputs is None else dict(inputs)
    own = None if explained._options is None else explained._options.checkpoint
    asked = checkpoint if checkpoint is not None else own
    with stage("counting"):
        count = _counter(explained, given, batch, targets, on == "cpu", made=inputs is None)
        measured = count(asked)
        weights = weights_of(explained, _in_layers(measured), bits)
    load = Load(batch, targets, micro_batches, efficiency, explained.dtype, schedule)
    if stages is not None:
        _check_stages(stages, min(chosen.count, len(pieces_of(measured))))
    found = best(measured, weights, chosen, load) if stages is None else arranged(measured, weights, chosen, load, stages)
    ways = () if found.fits else _ways(explained, count, asked, bits, chosen, load)
    every = {path for part in measured.parts for path in part.weights} | weights.in_first | {*measured.head}
    return DevicePlan(
        explained.record.model_class, explained.record.table_name, str(explained.dtype).removeprefix("torch."),
        weights.parameters_of(every), weights.bytes_of(every), written_sizes(given), load,
        "none" if asked is None else str(asked), bits, chosen, _rows(measured, weights, asked is not None), found, ways,
    )  # fmt: skip


def _counter(
    explained: Explained, given: Mapping[str, Any], batch: int, targets: int, skips: bool, *, made: bool
) -> Counter:
    """Counts the parts for a checkpoint. What was counted for inputs that we made is taken for other devices too, as long
    as the module runs the same graph."""
    sizes = tuple((name, tuple(x.shape)) for name, x in given.items() if isinstance(x, Tensor))

    def count(checkpoint: Checkpoint) -> Measured:
        if not made:
            return measured_of(explained, given, checkpoint, batch=batch, targets=targets, skips=skips)
        key = sizes, checkpoint, batch, targets, skips
        graph, found = _COUNTED.get(explained, (None, {}))
        if graph is not explained.fused:
            graph, found = explained.fused, {}
        if key not in found:
            found[key] = measured_of(explained, given, checkpoint, batch=batch, targets=targets, skips=skips)
        _COUNTED[explained] = graph, found
        return found[key]

    return count


def measured_of(
    explained: Explained, inputs: Mapping[str, Any], checkpoint: Checkpoint, *, batch: int, targets: int, skips: bool
) -> Measured:
    """The costs of the parts of the graph that a call with these inputs runs, for so many targets of each text."""
    fitting, bound = explained._prepared((), inputs)
    _refuse_packed(fitting)
    if any(node.target is grouped_matmul for node in fitting.fused.nodes):
        register_ops()  # else their flops would not be known
    segments = segments_of(fitting, fitting.fused, "layers" if checkpoint is None else checkpoint)
    split = split_model(fitting)
    graph = fitting.fused if split is None else split.body.graph
    output = _explained_output(fitting) if split is None else graph.output_node().all_input_nodes[0]
    at_once = formulas(batch * targets, skips=skips)
    behind = Behind(output, split, fitting.record.form, targets, at_once)
    tensors = weights_of(fitting, (), None).tensors
    run = FakeRun(tensors, formulas(batch, skips=skips), checkpoint is not None)
    try:
        return run.measured(parts_of(graph, segments), bound, fitting.record.leaves, behind)
    except (RuntimeError, NotImplementedError) as error:  # what torch raises where an op reads a value
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"plan: {run.where} of {fitting.record.model_class} cannot run on tensors without values ({first}); sizes that "
            "depend on values (a loop over the experts that were hit, nonzero) cannot be planned"
        ) from error


def _refuse_packed(explained: Explained) -> None:
    if any(packed_layer_of(buffer) is not None for buffer in explained.buffers()):
        raise InputError(
            f"plan: {explained.record.model_class} has layers with packed weights, whose kernels say nothing of flops; "
            "plan the unpacked model, with bits=4 or bits=8"
        )


def _explained_output(explained: Explained) -> Node:
    """The output that targets are taken of: the logits, or else the first one that is computed from a leaf."""
    (result,) = explained.fused.output_node().args
    flat = pytree.tree_leaves(result)
    named = pytree.tree_unflatten(flat, io_of(explained.fused).out_spec)
    logits = named.get("logits") if isinstance(named, Mapping) else getattr(named, "logits", None)
    nodes = [node for node in (logits, *flat) if isinstance(node, Node)]
    if not nodes:
        raise InputError(f"plan: {explained.record.model_class} returns no tensor, so there is nothing to explain")
    return nodes[0]


def _explained_of(model: Any, dtype: torch.dtype) -> Explained:
    if not isinstance(model, nn.Module):
        if not isinstance(model, (str, Path)) and not hasattr(model, "model_type"):
            raise InputError(
                f"plan: {type(model).__name__} is no model; give an explained module, a transformers model or config, a "
                "folder with a config.json, or the name of a shape"
            )
        with stage("building the shape"):
            model = model_on_meta(model, dtype)
    model = opened(model, "plan")
    if isinstance(model, Explained):
        return model
    if not is_transformers(model):
        raise InputError(
            f"plan: {type(model).__name__} is no transformers model, so its inputs are unknown; give "
            "lxt_fx.transform(model, (x,)) of an example x, and inputs={...}"
        )
    return transform(model)


def _in_layers(measured: Measured) -> set[str]:
    return {path for part in measured.parts if part.name not in (BEFORE, BEHIND) for path in part.weights}


def _rows(measured: Measured, weights: Weights, recomputed: bool) -> tuple[PartRow, ...]:
    """The parts, with the table that tokens are looked up in first."""
    rows = []
    if weights.in_first:
        first = weights.in_first
        rows.append(PartRow("embedding", weights.parameters_of(first), weights.bytes_of(first), 0, 0, 0, False))
    for part in measured.parts:
        saved = part.saved + measured.bytes_of(name for name in part.saves if name not in measured.shared)
        own = recomputed and part.name not in (BEFORE, BEHIND)
        rows.append(
            PartRow(
                part.name, weights.parameters_of(part.weights), weights.bytes_of(part.weights), part.forward_flops,
                part.backward_flops, saved, own,
            )
        )  # fmt: skip
    head, end = measured.head, measured.in_pipeline
    sizes = weights.parameters_of(head), weights.bytes_of(head)
    rows.append(PartRow("at the target", *sizes, end.forward_flops, end.backward_flops, end.saved, False))
    return tuple(rows)


def _ways(
    explained: Explained, count: Counter, asked: Checkpoint, bits: int | None, devices: Devices, load: Load
) -> tuple[Remedy, ...]:
    """What would make the model fit, each alone or with checkpoints."""
    found: list[Remedy] = []
    variants = [("", count(asked), bits)]
    if asked is None:
        variants.append(('checkpoint="layers"', count("layers"), bits))
    if bits is None:
        variants += [(f"{label + ', ' if label else ''}bits=4", each, 4) for label, each, _ in variants]
    for label, each, packed in variants:
        weights = weights_of(explained, _in_layers(each), packed)
        if label:
            made = best(each, weights, devices, load)
            found.append(Remedy(label, made.peak, made.per_hour, made.fits))
        and_this = f"{label}, " if label else ""
        for further in (fewer_micro_batches, more_devices):
            found += [_named(and_this, remedy) for remedy in further(each, weights, devices, load)]
    label, each, _ = variants[1] if asked is None else variants[0]
    weights = weights_of(explained, _in_layers(each), bits)
    found += [_named(f"{label}, " if label else "", remedy) for remedy in offloaded(each, weights, devices, load)]
    return tuple(found)


def _named(before: str, remedy: Remedy) -> Remedy:
    return Remedy(before + remedy.what, remedy.peak, remedy.per_hour, remedy.fits)


def _check_numbers(**numbers: object) -> None:
    for name, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise InputError(f"plan: {name} must be a whole number from 1 on, got {number!r}")


def _check_choices(efficiency: float, on: str, schedule: str) -> None:
    if not 0 < efficiency <= 1:
        raise InputError(f"plan: efficiency must be above 0 and at most 1, got {efficiency!r}")
    if on not in ("cuda", "cpu"):
        raise InputError(f'plan: on must be "cuda" or "cpu", got {on!r}')
    check_schedule(schedule, "plan")


def _check_stages(stages: int, most: int) -> None:
    if isinstance(stages, bool) or not isinstance(stages, int) or not 1 <= stages <= most:
        raise InputError(f"plan: stages must be from 1 to {most} (devices, and layers of the model), got {stages!r}")
