"""What each writer adds to the residual stream in one run, and how that differs between two."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lxt_fx.attribution.many_targets import LARGEST_CHUNK
from lxt_fx.base.errors import ForwardMismatchError
from lxt_fx.inside.circuits.graph_run import GraphRun
from lxt_fx.inside.circuits.network import Network, Reader, Writer

CLOSE = 64.0
"""How far heads may be from the sum of what they add, in units in the last place of the largest value, in the
coarsest dtype between heads and stream."""


class Contributions:
    """What the writers of a network add in one run, found when it is asked for. Of a head: its values through its part of
    the output projection; of anything else the term of the stream itself. A norm behind the projection (Gemma) has the
    factor that it has in this run, so that heads and bias still add up to what the attention adds. Biases belong to no head
    and no feature. Errors are in the name of `function`."""

    def __init__(self, run: GraphRun, network: Network, function: str) -> None:
        self.run, self.network, self.function = run, network, function
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def added(self, writer: Writer) -> Tensor:
        """What each unit adds, [units, *stream], at least float32; what all features add together, [1, *stream].

        Raises ForwardMismatchError where heads do not add up to their attention: what stands between is not linear.
        """
        return self._of(writer)[0]

    def constant(self, writer: Writer) -> Tensor:
        """What is added where all units are 0, such as a bias, [*stream]."""
        return self._of(writer)[1]

    def parts(self, writer: Writer) -> Tensor:
        """The values of heads or features."""
        assert writer.write.parts is not None, "asked for a writer with parts"
        found: Tensor = self.run.values[writer.write.parts]
        return found

    def _as_stream(self, value: Tensor) -> Tensor:
        """The value at least float32, in the shape of the embedding: some models have examples and tokens in one axis."""
        shape = self.run.values[self.network.writers[0].write.added].shape
        return value.to(torch.promote_types(value.dtype, torch.float32)).reshape(shape)

    @torch.no_grad()
    def _of(self, writer: Writer) -> tuple[Tensor, Tensor]:
        if writer.place not in self._known:
            write, whole = writer.write, self._as_stream(self.run.values[writer.write.added])
            if write.parts is None:
                self._known[writer.place] = whole[None], torch.zeros_like(whole)
            else:
                parts = self.run.values[write.parts]
                none = self.from_parts(writer, torch.zeros_like(parts))
                alone = [parts] if writer.by_features else self._alone(writer, parts)
                found = torch.stack([self.from_parts(writer, each) - none for each in alone])
                self._check(writer, found, none, whole)
                self._known[writer.place] = found, none
        return self._known[writer.place]

    def from_parts(self, writer: Writer, parts: Tensor) -> Tensor:
        """What the stream would get of these heads or features, norms held, [*stream]."""
        write = writer.write
        assert write.parts is not None, "asked for a writer with parts"
        return self._as_stream(self.run.through(write.between, write.parts, parts, write.held))

    def _alone(self, writer: Writer, heads: Tensor) -> Iterator[Tensor]:
        """The heads, each alone."""
        assert writer.axis is not None, "asked for a writer with heads"
        for unit in range(len(writer.names)):
            alone = torch.zeros_like(heads)
            alone.select(writer.axis, unit).copy_(heads.select(writer.axis, unit))
            yield alone

    def _check(self, writer: Writer, found: Tensor, none: Tensor, whole: Tensor) -> None:
        far, scale = float((found.sum(0) + none - whole).abs().max()), float(found.abs().sum(0).max() + none.abs().max())
        values = (self.run.values[node] for node in writer.write.between)
        eps = max(torch.finfo(value.dtype).eps for value in values if value.is_floating_point())
        if far > CLOSE * eps * scale:
            raise ForwardMismatchError(
                f"{self.function}: the heads of {writer.place} do not add up to what their attention adds to the stream (off "
                f"by {far:.1e}, of values up to {scale:.1e}): what stands between them, up to %{writer.write.added.name}, is "
                "not linear, so a head has no part of its own"
            )


class Differences:
    """What writers add in one run less what they add in another."""

    def __init__(self, one: Contributions, other: Contributions) -> None:
        self.one, self.other, self.network = one, other, one.network
        shape, count = other.added(self.network.writers[0])[0], len(self.network.writer_names)
        features = sum(len(writer.names) for writer in self.network.writers if writer.by_features)
        self._dense = shape.new_zeros(count - features, *shape.shape)
        rows = 0
        self._rows: dict[str, range] = {}
        for writer in self.network.writers:
            if not writer.by_features:
                self._rows[writer.place] = range(rows, rows + len(writer.names))
                rows += len(writer.names)

    def find(self, writer: Writer) -> None:
        """Finds the difference of a writer, which ran in both runs. Raises ForwardMismatchError where a part of it belongs to
        no unit: a bias that a norm divides by the size of the value."""
        bias = self.one.constant(writer) - self.other.constant(writer)
        added = self.one.added(writer) - self.other.added(writer)
        scale = float(added.abs().max())
        if float(bias.abs().max()) > CLOSE * torch.finfo(added.dtype).eps * max(scale, float(self.one.constant(writer).abs().max())):
            raise ForwardMismatchError(
                f"{self.one.function}: with all units of {writer.place} at 0, what they add to the stream still differs between "
                f"the runs (by {float(bias.abs().max()):.1e}): a bias behind which a norm stands, or a second path, has a "
                "part in it that is no unit's"
            )
        if not writer.by_features:
            self._dense[_slice(self._rows[writer.place])] = added

    def of(self, writer: Writer) -> Tensor:
        """The difference of each unit, [units, *stream]. Not for features."""
        return self._dense[_slice(self._rows[writer.place])]

    def dot(self, reader: Reader, gradients: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """The products with gradients [readers, *stream] of what the reader sees, summed over tokens and hidden: some writers,
        and [pairs, writers, readers] for these."""
        dense = [writer for writer in reader.sees if not writer.by_features]
        if dense:
            rows = [row for writer in dense for row in self._rows[writer.place]]
            some = self._dense[slice(rows[0], rows[-1] + 1)] if rows[-1] - rows[0] + 1 == len(rows) else self._dense[rows]
            products = torch.einsum("wb...,rb...->bwr", some, gradients.to(some.dtype))
            yield [unit for writer in dense for unit in writer.units], products
        for writer in reader.sees:
            if writer.by_features:
                yield list(writer.units), self.dot_features(writer, gradients)

    def dot_features(self, writer: Writer, gradients: Tensor) -> Tensor:
        """The products of features: each is f_k (d_k . g), [pairs, features, readers]. The gradients go back through the
        decoder, so what each feature adds is never made."""
        found = []
        for start in range(0, len(gradients), LARGEST_CHUNK):
            some = gradients[start : start + LARGEST_CHUNK]
            both = (each.parts(writer) * self._back(each, writer, some) for each in (self.one, self.other))
            found.append(_wide(next(both) - next(both)).flatten(2, -2).sum(2).permute(1, 2, 0))
        return torch.cat(found, 2)

    def _back(self, each: Contributions, writer: Writer, gradients: Tensor) -> Tensor:
        """What gradients [readers, *stream] are at the features of a run."""
        with torch.enable_grad():
            parts = each.parts(writer).detach().requires_grad_(True)
            added = each.from_parts(writer, parts)
        (found,) = torch.autograd.grad(added, parts, gradients.to(added.dtype), is_grads_batched=True)
        return found

    def outside(self, writer: Writer, units: Tensor) -> Tensor:
        """The sum of the differences of these units [units] bool, [*stream]."""
        if not writer.by_features:
            return self.of(writer)[units].sum(0)
        kept = [each.from_parts(writer, each.parts(writer) * units.to(each.parts(writer))) for each in (self.one, self.other)]
        return kept[0] - kept[1]


def _slice(rows: range) -> slice:
    return slice(rows.start, rows.stop)


def _wide(value: Tensor) -> Tensor:
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))


def differences(one: Contributions, other: Contributions) -> Differences:
    """Those of all writers of two runs."""
    found = Differences(one, other)
    for writer in one.network.writers:
        found.find(writer)
    return found
