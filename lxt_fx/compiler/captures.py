"""The first part of `transform`, which is the same for all tables: a captured model, kept from an earlier call, read from a
file, or captured now."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from lxt_fx.base.as_it_was import Runs, Written, as_it_was, runs_logged
from lxt_fx.base.cache_files import drop, folder
from lxt_fx.base.errors import CaptureError
from lxt_fx.base.on_meta import on_meta
from lxt_fx.base.one_capture import one_capture
from lxt_fx.base.remembered_facts import Remembered, remembered
from lxt_fx.compiler.cached_capture import Sizes, read_capture, write_capture
from lxt_fx.compiler.capture_key import capture_key
from lxt_fx.compiler.captured_model import Begun, CapturedModel, embedding_of, on_short_texts
from lxt_fx.compiler.hooks import refuse_passing_hooks
from lxt_fx.compiler.kept_captures import (
    KeptCapture,
    copied_capture,
    facts_now,
    find_capture,
    forget_capture,
    forget_model,
    keep_capture,
    model_now,
    settings_for,
    sizes_of,
    state_of,
)
from lxt_fx.compiler.model_changes import places_written
from lxt_fx.compiler.options import example_of
from lxt_fx.compiler.placement import NOT_COMPARED, placement_of, without_values
from lxt_fx.compiler.short_check import Checked
from lxt_fx.compiler.timed import timed
from lxt_fx.passes.canonical.fill_missing import has_missing
from lxt_fx.passes.capture.autograd_functions import Functions, own_backwards_found
from lxt_fx.passes.capture.capture import Captured, torch_state_restored
from lxt_fx.passes.capture.example import Example, token_embedding
from lxt_fx.passes.capture.made_parameters import refuse_made_parameters
from lxt_fx.passes.capture.offloaded import dispatched_from, is_dispatched, is_offloaded
from lxt_fx.passes.capture.packed_layers import PackedLayers, packed_layers
from lxt_fx.passes.capture.refused_inputs import answers_after, without_refused_inputs
from lxt_fx.passes.capture.with_backwards import captured_with_backwards
from lxt_fx.passes.verify_gradient.verify_gradient import GradientProof


def captured_from(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None, *, dynamic: bool
) -> CapturedModel:
    """The first part of `transform`, which is the same for all tables, for a model that is opened. Raises InputError and
    CaptureError as `transform` does."""
    return captured_on(model, example_of(model, args, kwargs), dynamic=dynamic)


@one_capture()
def captured_on(model: nn.Module, example: Example, *, dynamic: bool) -> CapturedModel:
    """The model captured on an example that is made, or on another of the same kinds if it has not changed since. Raises
    CaptureError, and InputError for a model that is steered."""
    refuse_passing_hooks(model, "transform")
    if (kept := find_capture(model, example, dynamic)) is not None:
        return of_kept(kept, model, example, dynamic)
    return _captured_anew(model, example, dynamic)


def of_kept(kept: KeptCapture, model: nn.Module, example: Example, dynamic: bool) -> CapturedModel:
    """A kept capture for a call of the model that it fits."""
    again = partial(_captured_anew, model, example, dynamic)
    return replace(kept.source(model, example), fresh=again, narrowed=partial(forget_capture, model, kept))


def _captured_anew(model: nn.Module, example: Example, dynamic: bool) -> CapturedModel:
    return captured_now(model, example, dynamic)[0]


def captured_now(
    model: nn.Module, example: Example, dynamic: bool, packed: PackedLayers | None = None
) -> tuple[CapturedModel, KeptCapture]:
    """The model captured on an example, or read from the file of an earlier process, and that capture as it is kept. Its
    `packed` layers are given where it has no values that say which they are."""
    if is_dispatched(model):
        return _captured_without_values(model, example, dynamic)
    with as_it_was(model):  # the captured graph writes into its buffers too, when it is compared with the model
        facts = facts_now(model)
        before = facts if isinstance(facts, str) else remembered(facts)
        off = isinstance(facts, str) or folder() is None or on_meta(model, example.kwargs) or has_missing(example.kwargs)
        key = None if off or isinstance(facts, str) else capture_key(facts, example, dynamic, settings_for(model))
        if key is not None and (read := _from_file(key, model, example)) is not None:
            source, written, sizes = read
            source = replace(source, fresh=partial(_captured_after_all, key, model, example, dynamic))
        else:
            source, written = _capture(model, example, dynamic, packed)
            sizes = sizes_of(source.captured)
        after = _facts_after(model, written) if isinstance(before, Remembered) else None
        kept = keep_capture(source, example, dynamic, places_written(model, written), before, after, sizes)
        if key is not None and source.begun is None and not source.packed.found:
            source = replace(source, stores=(partial(_write, key, model, kept),))
        return replace(source, narrowed=partial(forget_capture, model, kept), not_kept=kept.not_kept), kept


def _captured_without_values(model: nn.Module, example: Example, dynamic: bool) -> tuple[CapturedModel, KeptCapture]:
    """A dispatched model, by its twin without values: no weight that is offloaded is read for its capture."""
    dispatched, packed = dispatched_from(model), packed_layers(model)
    if packed.found:
        with torch_state_restored(), torch.no_grad(), packed.compared():
            example.call(model)
    of_twin = packed.on_twin(dispatched.twin)
    stands = {id(of_twin.found[path].weight): each.weight for path, each in packed.found.items()}
    dispatched = replace(dispatched, tensors={**dispatched.tensors, **stands})
    source, kept = captured_now(dispatched.twin, without_values(example), dynamic, of_twin)
    seconds = dict(source.seconds)
    with timed(seconds, "example"):
        placement = placement_of(dispatched, model, example, source.captured.example)
    proofs = [GradientProof(math.nan, note=NOT_COMPARED)] if is_offloaded(model) else []
    return replace(
        source, model=model, state=None, seconds=seconds, proofs=proofs, packed=packed, placement=placement,
        not_kept="its weights are offloaded or on several devices",
    ), kept  # fmt: skip


def _captured_after_all(key: str, model: nn.Module, example: Example, dynamic: bool) -> CapturedModel:
    """The model captured on an example, because what a file had for it proved wrong."""
    drop(key, "its module differs from the model")
    forget_model(model)
    return _captured_anew(model, example, dynamic)


def _write(key: str, model: nn.Module, kept: KeptCapture, gm: GraphModule, begun: Begun) -> None:
    write_capture(key, model, kept.captured, kept.sizes, begun, gm, kept.by_embeddings)


def _from_file(key: str, model: nn.Module, example: Example) -> tuple[CapturedModel, list[Written], Sizes] | None:
    """The capture that a file has under this key, compared with the model; what the model's forward writes into it; and the
    sizes of its inputs."""
    seconds = dict[str, float]()
    with timed(seconds, "capture"), runs_logged() as runs:
        found = read_capture(key, model, example)
    if found is None:
        return None
    asked = found.whole or Checked(found.captured.example, found.expected)
    written = _written_by(model, runs, asked)
    captured = copied_capture(found.captured)  # compiled_by edits the graph
    state = state_of(model, captured.gm, found.begun, places_written(model, written))
    embedding = token_embedding(model) if found.by_embeddings else None
    source = CapturedModel(
        model, captured, found.expected, seconds, state, [found.proof], embedding=embedding, begun=found.begun,
        whole=found.whole,
    )  # fmt: skip
    return source, written, found.sizes


def _captured_in_its_state(
    model: nn.Module, example: Example, functions: Functions, dynamic: bool, first: Written
) -> Captured:
    """The graph of a model, of which the `first` run wrote something. What it chose (another attention for short texts) it
    may choose by a size, and that becomes a guard only if it is traced as it is. Tables that it builds are there already
    when it is traced. A model that chooses and cannot be exported as it is, is traced, with the sizes of the example."""
    if first.chooses:
        with suppress(CaptureError):
            return captured_with_backwards(model, example, functions, dynamic=dynamic)
    with as_it_was(model):
        first.again()
        return captured_with_backwards(model, example, functions, dynamic=dynamic and not first.chooses)


def _written_by(model: nn.Module, runs: Runs, asked: Checked) -> list[Written]:
    """What the forward writes into the model when it runs on the example, and when it runs on others, if that does not
    change its answer to the example: a length, a counter. An attention that it chooses for shorter texts changes it."""
    first = runs.of(asked.expected)
    found = [first] if first else []
    for other in runs.others(first):
        with torch_state_restored(), torch.no_grad():
            if answers_after(model, other, asked.example, asked.expected):
                found.append(other)
    return found


def _facts_after(model: nn.Module, written: Sequence[Written]) -> Remembered | str | None:
    """The facts of the model as its forward leaves it."""
    with as_it_was(model):
        for each in written:
            each.again()
        return model_now(model) if written else None


def _capture(
    model: nn.Module, example: Example, dynamic: bool, packed: PackedLayers | None = None
) -> tuple[CapturedModel, list[Written]]:
    """The model captured on an example, and what its forward writes into it."""
    with runs_logged() as runs:
        return _capture_in(model, example, dynamic, runs, packed)


def _capture_in(
    model: nn.Module, example: Example, dynamic: bool, runs: Runs, given: PackedLayers | None
) -> tuple[CapturedModel, list[Written]]:
    refuse_made_parameters(model)
    seconds = dict[str, float]()
    with timed(seconds, "example"), torch_state_restored(), torch.no_grad(), own_backwards_found() as functions:
        packed = packed_layers(model) if given is None else given
        with packed.compared() if given is None else packed.as_ops():
            example, expected = without_refused_inputs(model, example)
            embedding = embedding_of(model, example)
    asked, first = Checked(example, expected), runs.of(expected)
    refuse_made_parameters(model, first.parameters)
    with timed(seconds, "capture"), packed.as_ops():
        captured = _captured_in_its_state(model, example, functions, dynamic, first)
    source = CapturedModel(model, captured, expected, seconds, embedding=embedding, packed=packed)
    with timed(seconds, "example"):
        source = on_short_texts(source, sizes_of(captured), asked)
        if source.whole is None and captured.example is not example and not on_meta(model, captured.example.kwargs):
            try:
                with torch_state_restored(), torch.no_grad():
                    source = replace(source, expected=captured.example.call(model))
            except Exception:  # a kernel that capture does not look into may refuse other sizes than the example's
                return _capture(model, example, dynamic=False, packed=given)
    written = _written_by(model, runs, asked)
    return replace(source, state=state_of(model, captured.gm, None, places_written(model, written))), written
