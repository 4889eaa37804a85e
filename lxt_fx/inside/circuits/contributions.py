"""What each writer adds to the residual stream in one run."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lxt_fx.base.errors import ForwardMismatchError
from lxt_fx.inside.circuits.graph_run import GraphRun
from lxt_fx.inside.circuits.network import Network, Writer

CLOSE = 64.0
"""How far heads may be from the sum of what they add, in units in the last place of the largest value, in the
coarsest dtype between heads and stream."""


def contributions(run: GraphRun, network: Network, function: str) -> Tensor:
    """What each writer adds, [writers, *stream], at least float32: of a head its values through its part of the output
    projection, of anything else the term of the stream itself. A norm behind the projection (Gemma) has the factor that it
    has in this run, so that heads and bias still add up to what the attention adds; biases belong to no head.

    Raises ForwardMismatchError, in the name of `function`, where they do not add up: what stands between heads and stream
    is not linear.
    """
    return torch.cat([added(run, writer, function) for writer in network.writers])


def added(run: GraphRun, writer: Writer, function: str) -> Tensor:
    """What the units of one writer add in a run, [units, *stream]."""
    write, whole = writer.write, run.values[writer.write.added]
    if write.heads is None or writer.heads is None:
        return _wide(whole)[None]
    of_none = _wide(run.through(write.between, write.heads, torch.zeros_like(run.values[write.heads]), write.held))
    found = torch.stack([_wide(each) - of_none for each in _alone(run, writer)])
    far = float((found.sum(0) + of_none - _wide(whole)).abs().max())
    scale = max(float(found.abs().sum(0).max()), float(of_none.abs().max()))
    dtypes = {run.values[node].dtype for node in write.between if run.values[node].is_floating_point()}
    if far > CLOSE * max(torch.finfo(dtype).eps for dtype in dtypes) * scale:
        raise ForwardMismatchError(
            f"{function}: the heads of {writer.place} do not add up to what their attention adds to the stream (off by "
            f"{far:.1e}, of values up to {scale:.1e}): what stands between them, up to %{write.added.name}, is not linear, "
            "so a head has no part of its own"
        )
    return found


def _alone(run: GraphRun, writer: Writer) -> Iterator[Tensor]:
    """What the stream would get if only one head had its value."""
    write, axis = writer.write, writer.heads or 0
    assert write.heads is not None, "asked for a writer with heads"
    heads = run.values[write.heads]
    for unit in range(len(writer.names)):
        alone = torch.zeros_like(heads)
        alone.select(axis, unit).copy_(heads.select(axis, unit))
        yield run.through(write.between, write.heads, alone, write.held)


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
