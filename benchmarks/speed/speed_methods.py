"""The methods of speed.py, each made ready on a model. What an environment does not hold is imported only where
a method needs it: LXT's environment has no lxt_fx, ours has neither LXT nor captum."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from speed_models import Work
from torch import Tensor

STEPS = 20
"""Of integrated gradients; the issue's figure is for as many."""


class NotBuiltError(Exception):
    """This version of lxt_fx has no such option."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A method made ready: `run` takes a fresh leaf and gives relevance [batch, tokens or pixels] (None for a forward).
    `value` is its forward alone, where it is a forward and a backward. `facts` are seconds and counts."""

    run: Callable[[Tensor], Tensor | None]
    value: Callable[[Tensor], Tensor] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    with_parameters: bool = False


def gradient_method(value: Callable[[Tensor], Tensor], facts: dict[str, Any], with_parameters: bool = False) -> Ready:
    """Forward, backward, input times gradient."""

    def run(leaf: Tensor) -> Tensor:
        value(leaf).backward()
        assert leaf.grad is not None
        return _by_place(leaf.detach() * leaf.grad)

    return Ready(run, value, facts, with_parameters)


def _by_place(relevance: Tensor) -> Tensor:
    """[batch, tokens, hidden] or [batch, channels, height, width], summed to one number a token or pixel."""
    return relevance.sum(-1 if relevance.dim() == 3 else 1).flatten(1)


def forward(work: Work) -> Ready:
    def run(leaf: Tensor) -> None:
        with torch.no_grad():
            work.value(work.model, leaf)

    return Ready(run)


def plain(work: Work) -> Ready:
    return gradient_method(lambda leaf: work.value(work.model, leaf), {})


def plain_parameters(work: Work) -> Ready:
    return gradient_method(lambda leaf: work.value(work.model, leaf), {}, with_parameters=True)


def plain_last(work: Work) -> Ready:
    return gradient_method(lambda leaf: work.value(work.model, leaf, logits_to_keep=1), {})


def transformed(work: Work, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Our module, and what making it cost. Raises NotBuiltError where `transform` has no such option."""
    lxt_fx = importlib.import_module("lxt_fx")
    start = time.perf_counter()
    try:
        net = lxt_fx.transform(work.model, **options)
    except TypeError as error:
        if any(f"'{name}'" in str(error) for name in options):
            raise NotBuiltError(f"not built: transform has no {', '.join(options)}") from error
        raise
    record = net.record
    facts = {
        "transform_seconds": time.perf_counter() - start,
        "capture_seconds": record.seconds.get("capture", 0.0),
        "nodes_captured": len(record.stages["capture"].graph.nodes),
        "nodes": len(net.graph.nodes),
    }
    return net, facts


def ours(work: Work) -> Ready:
    net, facts = transformed(work)
    return gradient_method(lambda leaf: work.value(net, leaf), facts)


def ours_last(work: Work) -> Ready:
    net, facts = transformed(work, positions="last")
    return gradient_method(lambda leaf: work.value(net, leaf), facts)


def ours_checkpoint(work: Work) -> Ready:
    net, facts = transformed(work, checkpoint="sqrt")
    return gradient_method(lambda leaf: work.value(net, leaf), facts)


def compiled(work: Work, **options: Any) -> Ready:
    """Our module under torch.compile; the first run compiles."""
    net, facts = transformed(work, **options)
    fast = torch.compile(net, fullgraph=True)

    def value(leaf: Tensor) -> Tensor:
        output = fast(**{work.name: leaf})
        return work.value(lambda **_: output, leaf)

    return gradient_method(value, facts)


def ours_compiled(work: Work) -> Ready:
    return compiled(work)


def ours_last_compiled(work: Work) -> Ready:
    return compiled(work, positions="last")


def autolrp(work: Work) -> Ready:
    """autoLRP's AttnLRP preset on the model as it is."""
    package = importlib.import_module("autolrp")
    config = package.LRPConfig(rule={**package.BASE, **package.ATTNLRP})

    def run(leaf: Tensor) -> Tensor:
        wrapped = package.tensor(leaf)
        work.value(work.model, wrapped).lrp(config=config)
        return _by_place(wrapped.relevance)

    return Ready(run)


def captum_ixg(work: Work) -> Ready:
    attr = importlib.import_module("captum.attr")
    method = attr.InputXGradient(lambda leaf: work.call(work.model, leaf))
    return Ready(lambda leaf: _by_place(method.attribute(leaf, target=work.entries).detach()))


def captum_ig(work: Work) -> Ready:
    """Integrated gradients from 0; 5 of the 20 steps share a forward."""
    attr = importlib.import_module("captum.attr")
    method = attr.IntegratedGradients(lambda leaf: work.call(work.model, leaf))

    def run(leaf: Tensor) -> Tensor:
        found = method.attribute(leaf, target=work.entries, n_steps=STEPS, internal_batch_size=5 * len(leaf))
        return _by_place(found.detach())

    return Ready(run)


def lxt(work: Work) -> Ready:
    return plain(_patched(work))


def lxt_last(work: Work) -> Ready:
    return plain_last(_patched(work))


def _patched(work: Work) -> Work:
    """LXT patches the modeling module of the model's class; `speed_worker.py` has made its import possible."""
    efficient = importlib.import_module("lxt.efficient")
    efficient.monkey_patch(importlib.import_module(type(work.model).__module__))
    return work


def _chosen(work: Work, net: Any) -> list[int]:
    """The largest entries of the first row at the input, always the same ones."""
    with torch.no_grad():
        found: list[int] = work.call(net, work.example)[0].topk(work.cell.targets).indices.tolist()
    return found


def targets_single(work: Work) -> Ready:
    """One forward and one backward for each target, summed over rows, which do not depend on one another."""
    net, facts = transformed(work)
    chosen = _chosen(work, net)

    def run(leaf: Tensor) -> Tensor:
        found = []
        for entry in chosen:
            (gradient,) = torch.autograd.grad(work.call(net, leaf)[:, entry].sum(), leaf)
            found.append(_by_place(leaf.detach() * gradient))
        return torch.stack(found)

    return Ready(run, None, facts)


def targets_batched(work: Work) -> Ready:
    """One forward and one batched backward for all targets, by hand."""
    net, facts = transformed(work)
    chosen = _chosen(work, net)

    def run(leaf: Tensor) -> Tensor:
        values = work.call(net, leaf)[:, chosen].sum(0)
        each = torch.eye(len(values), device=values.device, dtype=values.dtype)
        (gradients,) = torch.autograd.grad(values, leaf, each, is_grads_batched=True)
        return torch.stack([_by_place(leaf.detach() * gradient) for gradient in gradients])

    return Ready(run, None, facts)


def targets_one_call(work: Work) -> Ready:
    """`relevance_of`: batches of backwards from one forward, the head once on the rows that are asked for."""
    net, facts = transformed(work)
    chosen = _chosen(work, net)
    relevance_of = importlib.import_module("lxt_fx").relevance_of
    reduce = "hidden" if work.example.dim() == 3 else "channels"

    def run(leaf: Tensor) -> Tensor:
        found: Tensor = relevance_of(net, {work.name: leaf}, chosen, reduce=reduce)
        return found.flatten(2)

    return Ready(run, None, facts)


PREPARE: dict[str, Callable[[Work], Ready]] = {
    "forward": forward, "plain": plain, "plain_parameters": plain_parameters, "plain_last": plain_last, "ours": ours,
    "ours_last": ours_last, "ours_checkpoint": ours_checkpoint, "ours_compiled": ours_compiled,
    "ours_last_compiled": ours_last_compiled, "autolrp": autolrp, "captum_ixg": captum_ixg, "captum_ig": captum_ig,
    "lxt_plain": plain, "lxt": lxt, "lxt_last": lxt_last, "targets_single": targets_single,
    "targets_batched": targets_batched, "targets_one_call": targets_one_call,
}  # fmt: skip
"""By the names of speed_grid.METHODS."""
