"""What each writer adds to the residual stream in one run, and how that differs between two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from lxt_fx.attribution.many_targets import LARGEST_CHUNK
from lxt_fx.base.errors import ForwardMismatchError, InputError
from lxt_fx.base.wide import at_least_float32
from lxt_fx.inside.circuits.graph_run import GraphRun
from lxt_fx.inside.circuits.network import Network, Reader, Writer
from lxt_fx.passes.analysis.find_writers import Scales

CLOSE = 64.0
"""How far units may be from the sum of what they add, in units in the last place of the largest value, in the coarsest
dtype between them and the stream."""


def far_apart(found: Tensor, expected: Tensor, scale: float, eps: float) -> str | None:
    """How far a sum is from what it must be, in words, if that is more than `CLOSE`: `scale` is its largest value, `eps`
    that of `coarsest`."""
    far = float((found - expected).abs().max())
    return f"off by {far:.1e}, of values up to {scale:.1e}" if far > CLOSE * eps * scale else None


def coarsest(run: GraphRun, nodes: Iterable[Node]) -> float:
    """The unit in the last place, at 1, of the coarsest dtype that values of these nodes have."""
    values = (run.values[node] for node in nodes)
    return max(torch.finfo(each.dtype).eps for each in values if isinstance(each, Tensor) and each.is_floating_point())


class Contributions:
    """What the writers of a network add in one run. Of a head: its values through its part of the output projection; of
    anything else the term of the stream itself. A norm behind the projection (Gemma) has the factor that it has in this
    run, so that heads and bias add up to what the attention adds. Biases belong to no head and no feature.

    All terms are as if they stood in the embedding: where the stream is multiplied with constants before they are added
    (`Writer.scales`), they are divided by these, and what a reader sees is a sum of terms times its `scales`. Errors are in
    the name of `function`."""

    def __init__(self, run: GraphRun, network: Network, function: str) -> None:
        self.run, self.network, self.function = run, network, function
        self._added: dict[str, Tensor] = {}

    def whole(self, writer: Writer) -> Tensor:
        """The term of the stream, at least float32, [*stream]."""
        return self._as_stream(writer, self.run.values[writer.write.added])

    def parts(self, writer: Writer) -> Tensor:
        """The values of heads or features."""
        assert writer.write.parts is not None, "asked for a writer with parts"
        found: Tensor = self.run.values[writer.write.parts]
        return found

    def from_parts(self, writer: Writer, parts: Tensor) -> Tensor:
        """The term of the stream if heads or features had these values, norms held, [*stream]."""
        write = writer.write
        assert write.parts is not None, "asked for a writer with parts"
        return self._as_stream(writer, self.run.through(write.between, write.parts, parts, write.held))

    @torch.no_grad()
    def of_heads(self, writer: Writer, heads: Tensor) -> Tensor:
        """What each head adds with these values, [heads, *stream]."""
        assert writer.axis is not None, "asked for a writer with heads"
        none, found = self.from_parts(writer, torch.zeros_like(heads)), list[Tensor]()
        for unit in range(len(writer.names)):
            alone = torch.zeros_like(heads)
            alone.select(writer.axis, unit).copy_(heads.select(writer.axis, unit))
            found.append(self.from_parts(writer, alone) - none)
        return torch.stack(found)

    @torch.no_grad()
    def added(self, writer: Writer) -> Tensor:
        """What each unit adds, [units, *stream]; what all features add together, [1, *stream]."""
        if writer.write.parts is None:
            return self.whole(writer)[None]
        if writer.place not in self._added:
            parts = self.parts(writer)
            if writer.by_features:
                none = self.from_parts(writer, torch.zeros_like(parts))
                self._added[writer.place] = (self.from_parts(writer, parts) - none)[None]
            else:
                self._added[writer.place] = self.of_heads(writer, parts)
        return self._added[writer.place]

    @torch.no_grad()
    def scale(self, scales: Scales, like: Tensor) -> Tensor:
        """The product of these constants, of the dtype and on the device of `like`: one number, or one for each entry of
        hidden.

        Raises InputError where it is 0 or not finite: what is left of a term behind it says nothing of the term.
        """
        found = like.new_ones(())
        for constant in scales:
            found = found * (self.run.constant(constant).to(like) if isinstance(constant, Node) else constant)
        if not (found.isfinite().all() and found.all()):
            raise InputError(
                f"{self.function}: the residual stream is multiplied with constants whose product is 0 or not finite, so "
                "nothing of what was written before reaches the readers behind them"
            )
        return found

    def seen(self, value: Tensor, scales: Scales) -> Tensor:
        """A term, or a sum of them, times these constants; or the gradient of a term from that of the product."""
        return value * self.scale(scales, value) if scales else value

    def _as_stream(self, writer: Writer, value: Tensor) -> Tensor:
        """The value at least float32, in the shape of the embedding: some models have examples and tokens in one axis."""
        shape = self.run.values[self.network.writers[0].write.added].shape
        found = at_least_float32(value).reshape(shape)
        return found / self.scale(writer.scales, found) if writer.scales else found


class Differences:
    """What writers add in one run less what they add in another."""

    def __init__(self, one: Contributions, other: Contributions) -> None:
        self.one, self.other, self.network = one, other, one.network
        dense, rows = [writer for writer in self.network.writers if not writer.by_features], 0
        self._rows: dict[str, slice] = {}
        for writer in dense:
            self._rows[writer.place] = slice(rows, rows + len(writer.names))
            rows += len(writer.names)
        stream = other.whole(self.network.writers[0])
        self._dense = stream.new_zeros(rows, *stream.shape)

    def find(self, writer: Writer) -> None:
        """Finds the difference of a writer, which ran in both runs.

        Raises ForwardMismatchError where its units do not add up to that of the whole: where what stands between them and
        the stream is not linear, or a bias is not the same in both runs.
        """
        one, other = self.one, self.other
        if writer.write.parts is None or writer.by_features or writer.write.held:
            found = one.added(writer) - other.added(writer)
        else:  # linear with constant weights: once for both
            found = one.of_heads(writer, one.parts(writer) - other.parts(writer))
        if writer.write.parts is not None:
            self._check(writer, found)
        if not writer.by_features:
            self._dense[self._rows[writer.place]] = found

    def _check(self, writer: Writer, found: Tensor) -> None:
        both = (self.one.whole(writer), self.other.whole(writer))
        scale = max(float(each.abs().max()) for each in (*both, found.abs().sum(0)))
        if far := far_apart(found.sum(0), both[0] - both[1], scale, coarsest(self.one.run, writer.write.between)):
            raise ForwardMismatchError(
                f"{self.one.function}: {writer.place} do not add up to what the stream has of them ({far}): what stands "
                f"between them and %{writer.write.added.name} is not linear, or has a bias that a norm makes another one "
                "in each run, so a unit has no part of its own; lxt_fx.latent reads the relevance of units in any network"
            )

    def of(self, writer: Writer) -> Tensor:
        """The difference of each unit, [units, *stream]. Not for features."""
        return self._dense[self._rows[writer.place]]

    def dot(self, reader: Reader, gradients: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """The products with gradients [readers, *stream] of what the reader sees, summed over tokens and hidden: some
        writers, and [pairs, writers, readers] for these."""
        gradients = self.one.seen(gradients, reader.scales)
        dense = [writer for writer in reader.sees if not writer.by_features]
        if dense:
            some = self._of_all(dense)
            products = torch.einsum("wb...,rb...->bwr", some, gradients.to(some.dtype))
            yield [unit for writer in dense for unit in writer.units], products
        for writer in reader.sees:
            if writer.by_features:
                yield list(writer.units), self.dot_features(writer, gradients)

    def by_token(self, reader: Reader, gradients: Tensor) -> Tensor:
        """The products with gradients [readers, *stream] of what the reader sees, summed over hidden: [pairs, tokens,
        writers, readers]. Not for features."""
        some = torch.cat([self.of(writer) for writer in reader.sees])
        gradients = self.one.seen(gradients, reader.scales)
        return torch.einsum("wbth,rbth->btwr", some, gradients.to(some.dtype))

    def dot_added(self, writer: Writer, gradient: Tensor) -> Tensor:
        """The products of what the units of a writer add with the gradient [*stream] there, [pairs, units]."""
        gradient = self.one.seen(gradient, writer.scales)
        if writer.by_features:
            return self.dot_features(writer, gradient[None])[..., 0]
        return torch.einsum("wb...,b...->bw", self.of(writer), gradient)

    def dot_features(self, writer: Writer, gradients: Tensor) -> Tensor:
        """The products of features: each is f_k (d_k . g), [pairs, features, readers]. The gradients go back through the
        decoder, so what each feature adds is never made."""
        found = []
        for start in range(0, len(gradients), LARGEST_CHUNK):
            some = gradients[start : start + LARGEST_CHUNK]
            both = (each.parts(writer) * self._back(each, writer, some) for each in (self.one, self.other))
            found.append(at_least_float32((next(both) - next(both)).detach()).flatten(2, -2).sum(2).permute(1, 2, 0))
        return torch.cat(found, 2)

    def _back(self, each: Contributions, writer: Writer, gradients: Tensor) -> Tensor:
        """What gradients [readers, *stream] are at the features of a run."""
        with torch.enable_grad():
            parts = each.parts(writer).detach().requires_grad_(True)
            added = each.from_parts(writer, parts)
        (found,) = torch.autograd.grad(added, parts, gradients.to(added.dtype), is_grads_batched=True)
        return found

    def _of_all(self, writers: Sequence[Writer]) -> Tensor:
        """The differences of the units of these writers, [units, *stream]. Not for features."""
        rows = [row for writer in writers for row in range(len(self._dense))[self._rows[writer.place]]]
        alike = rows[-1] - rows[0] + 1 == len(rows)  # a slice copies nothing
        return self._dense[rows[0] : rows[-1] + 1] if alike else self._dense[rows]

    def outside(self, reader: Reader, units: Tensor) -> Tensor:
        """The sums of the differences of these units [sets, units] bool of all that the reader sees, as they are where it
        reads, [sets, *stream]: one product for all sets."""
        sizes = [len(writer.names) for writer in reader.sees]
        by_writer = dict(zip(reader.sees, torch.split(units, sizes, 1), strict=True))
        dense = [writer for writer in reader.sees if not writer.by_features]
        found = self._dense.new_zeros(len(units), *self._dense.shape[1:])
        if dense:
            weights = torch.cat([by_writer[writer] for writer in dense], 1).to(found)
            found += torch.einsum("sw,w...->s...", weights, self._of_all(dense))
        for writer in reader.sees:
            if writer.by_features:
                found += torch.stack([self._of_features(writer, each) for each in by_writer[writer]])
        return self.one.seen(found, reader.scales)

    def _of_features(self, writer: Writer, units: Tensor) -> Tensor:
        """The sum of the differences of these features [features] bool, [*stream]."""
        first, second = (
            each.from_parts(writer, each.parts(writer) * units.to(each.parts(writer))) for each in (self.one, self.other)
        )
        return first - second


def differences(one: Contributions, other: Contributions) -> Differences:
    """Those of all writers of two runs."""
    found = Differences(one, other)
    for writer in one.network.writers:
        found.find(writer)
    return found
