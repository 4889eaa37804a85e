"""The parameters and buffers that a graph reads, each once, with the bytes that they have or would have in fewer bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from lxt_fx.base.errors import InputError
from lxt_fx.compiler.explained import Explained

BITS = {4: 4.5, 8: 8.0}
"""Bits of a packed weight with its scales: 4-bit NormalFloat has one scale of 32 bits for 64 weights (Dettmers et al. 2023,
QLoRA, section 2), 8-bit integers one for a whole output."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by their paths. `in_first` are the paths of those that look tokens up, which the first stage has. `bits` is
    that of packed matrices of linear maps in the layers, None for none."""

    tensors: Mapping[str, Tensor]
    in_first: frozenset[str]
    packed: frozenset[str]
    bits: int | None

    def bytes_of(self, paths: Iterable[str]) -> int:
        """The bytes of these tensors, one that stands at several paths once."""
        return sum(self._bytes(path) for path in self._once(paths))

    def parameters_of(self, paths: Iterable[str]) -> int:
        """How many elements the parameters among them have."""
        found = [self.tensors[path] for path in self._once(paths)]
        return sum(tensor.numel() for tensor in found if isinstance(tensor, nn.Parameter))

    def largest_unpacked(self, paths: Iterable[str]) -> int:
        """The bytes of the largest packed matrix as it is unpacked for a product; 0 where none is packed."""
        if self.bits is None:
            return 0
        return max((self.tensors[path].nbytes for path in paths if path in self.packed), default=0)

    def _once(self, paths: Iterable[str]) -> list[str]:
        known: dict[Any, str] = {}
        for path in sorted(paths):
            known.setdefault(id(self.tensors[path]), path)
        return list(known.values())

    def _bytes(self, path: str) -> int:
        tensor = self.tensors[path]
        if self.bits is None or path not in self.packed:
            return tensor.nbytes
        return round(tensor.numel() * BITS[self.bits] / 8)


def weights_of(explained: Explained, in_layers: Iterable[str], bits: int | None) -> Weights:
    """The weights of an explained module. `in_layers` are the paths that layers read: their matrices are what `bits` packs.
    Raises InputError for bits other than 4 and 8."""
    if bits is not None and bits not in BITS:
        raise InputError(f"plan: bits must be None, 4 or 8, got {bits!r}")
    paths = {str(node.target) for node in explained.fused.nodes if node.op == "get_attr"}
    found = {path: attrgetter(path)(explained) for path in paths}
    first: dict[str, Tensor] = {}
    for front in explained._fronts:
        first |= {**dict(front.module.named_parameters()), **dict(front.module.named_buffers())}
    found |= {path: tensor for path, tensor in first.items() if path not in found}
    tensors = {path: tensor for path, tensor in found.items() if isinstance(tensor, Tensor)}
    packed = frozenset(path for path in in_layers if path in tensors and tensors[path].dim() > 1)
    return Weights(tensors, frozenset(first), packed, bits)
