"""Scores of edges by token: where an edge is read, and where what is made of it is written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from lxt_fx.attribution.place_axes import axes_of, token_axis
from lxt_fx.base.errors import InputError
from lxt_fx.inside.circuits.branch_gradients import of_reader
from lxt_fx.inside.circuits.contributions import Differences
from lxt_fx.inside.circuits.network import LOGITS, Network, Reader, Writer

_AT_ONE_TOKEN = re.compile(rf"attention\..*queries|mlp\..*input|{LOGITS}")
"""Readers of which what is written at a token depends on the same token of the stream alone."""

_MOVED = re.compile(r"attention\..*(keys|values)")
"""Readers that an attention takes to other tokens."""


class TokenScores:
    """s(u at s -> v, to p) of all edges, `scores` [pairs, tokens, tokens, writers, readers]: s is where u writes and v
    reads, p where what is made of v is written. It is the sum over hidden of (a_u clean - a_u corrupted) at s times what
    flows back to the branch of v at s from what its part of the network writes at p. Queries, MLPs and the logits read
    where they write; keys and values at s flow into what their head writes at any p. Summed over s and p they are the
    scores of edges. `share` is the weight of each call that is added.

    Raises InputError for features of dictionaries, for mixers of tokens that are no attention, for keys that several
    layers share, and for a stream whose tokens have no axis of their own.
    """

    def __init__(self, network: Network, differences: Differences, share: float, function: str) -> None:
        _check(network, function)
        self.network, self.differences, self.share, self.function = network, differences, share, function
        self._scores: Tensor | None = None

    @property
    def scores(self) -> Tensor:
        """On the CPU."""
        assert self._scores is not None, "a call was added"
        return self._scores

    @property
    def inside(self) -> tuple[Node, ...]:
        """The values that gradients are needed at beside those of edges: the heads of each attention."""
        return tuple(writer.write.parts for writer in self.network.writers if writer.write.parts is not None)

    def add(self, at: Mapping[Node, Tensor], gradients: Mapping[Node, Tensor], readers: Tensor) -> None:
        """Adds the scores of one call: its values `at` nodes with their autograd graph, the gradients there, and those of
        all readers [readers, *stream]."""
        if self._scores is None:
            batch, tokens = readers.shape[1], readers.shape[2]
            self._scores = readers.new_zeros(batch, tokens, tokens, *self.network.edges.shape, device="cpu")
        for reader in self.network.readers:
            if not _MOVED.fullmatch(reader.place):
                self._put(reader, readers[reader.units.start : reader.units.stop])
        by_end = {reader.read.end: reader for reader in self.network.readers}
        for writer in self.network.writers:
            moved = [by_end[end] for end in writer.write.reads if _MOVED.fullmatch(by_end[end].place)]
            if moved and writer.write.parts in gradients:
                self._add_moved(writer, moved, at, gradients)

    def _add_moved(
        self, writer: Writer, moved: Sequence[Reader], at: Mapping[Node, Tensor], gradients: Mapping[Node, Tensor]
    ) -> None:
        """Those of the keys and values of one attention: one backward for each token that its heads write at."""
        moved = [reader for reader in moved if reader.read.end in gradients]
        heads = writer.write.parts
        assert heads is not None, "asked for an attention"
        for token, seed in enumerate(self._seeds(writer, gradients[heads])):
            ends = [at[reader.read.end] for reader in moved]
            found = torch.autograd.grad(at[heads], ends, seed, retain_graph=True, allow_unused=True)
            for reader, gradient in zip(moved, found, strict=True):
                if gradient is not None:
                    self._put(reader, self._at_stream(reader, at, gradient), token)

    def _at_stream(self, reader: Reader, at: Mapping[Node, Tensor], gradient: Tensor) -> Tensor:
        """What flows back to the stream for each unit of a reader, [units, *stream]."""
        shape = at[self.network.writers[0].write.added].shape
        return of_reader(reader, at, {reader.read.end: gradient}, self.function).reshape(-1, *shape)

    def _seeds(self, writer: Writer, gradient: Tensor) -> Iterator[Tensor]:
        """The gradient of all heads at one token after another."""
        module, node = self.network.module, writer.write.parts
        assert node is not None, "asked for an attention"
        value = module._values().by_name[self.network.name_in_module(node)]
        axis = token_axis(axes_of(module, writer.place, value).names)
        if axis is None:
            raise InputError(f"{self.function}: {writer.place} has no axis of tokens, so by_token has none to split by")
        for token in range(gradient.shape[axis]):
            seed = torch.zeros_like(gradient)
            seed.select(axis, token).copy_(gradient.select(axis, token))
            yield seed

    def _put(self, reader: Reader, gradients: Tensor, token: int | None = None) -> None:
        """Adds the scores of a reader with these gradients [units, *stream]: to what is written at this token, or (None) at
        the one where it is read."""
        writers = [unit for writer in reader.sees for unit in writer.units]
        found = self.share * self.differences.by_token(reader, gradients).cpu()  # [pairs, tokens, writers, units]
        into, tokens = self.scores, torch.arange(found.shape[1])
        units = slice(reader.units.start, reader.units.stop)
        for at in tokens.tolist():
            into[:, at, at if token is None else token][:, writers, units] += found[:, at]


def _check(network: Network, function: str) -> None:
    shape = network.writers[0].write.added.meta.get("val")
    if shape is not None and shape.dim() != 3:
        raise InputError(f"{function}: the stream has {shape.dim()} axes, and by_token needs batch, tokens and hidden")
    ends = [end for writer in network.writers for end in writer.write.reads]
    for reader in network.readers:
        if not _AT_ONE_TOKEN.fullmatch(reader.place) and not _MOVED.fullmatch(reader.place):
            raise InputError(
                f"{function}: {reader.place} is no attention, no MLP and no logits, so at which tokens it is read and "
                "written is not known; leave out by_token"
            )
        if ends.count(reader.read.end) > 1:
            raise InputError(
                f"{function}: {reader.place} is read by several attentions, so it belongs to no single one by token; leave "
                "out by_token"
            )
