"""One call of an explained module whose relevance is read at some of its leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.base.torch_internals import pytree
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.nested_inputs import with_leaves_in


@dataclass(frozen=True, slots=True, eq=False)
class LeafCall:
    """A call of the module that the user gave, `called`, with the inputs `named`. They are valid for the graph of `module`,
    and `bound` are the inputs of that graph by name. `leaves` are those of them at which relevance is read; they require a
    gradient."""

    called: Explained
    module: Explained
    named: Mapping[str, Any]
    bound: Mapping[str, Any]
    leaves: Mapping[str, Tensor]

    def output(self) -> Any:
        """What the module returns, with what observes its calls."""
        return self.called._called(self.module, self.bound)

    def by_token(self, relevance: Sequence[Tensor]) -> Tensor:
        """The relevance of each token, from that of each leaf [..., *leaf.shape]: summed over the dims behind those of the
        tokens, over the last dim of a leaf that is not looked up by tokens, and over the leaves."""
        dims = {front.leaf: front.tokens for front in self.module._fronts}
        found = []
        for (name, leaf), part in zip(self.leaves.items(), self.of_tokens(relevance), strict=True):
            behind = leaf.dim() - (dims.get(name) or leaf.dim() - 1)
            found.append(part if leaf.dim() < 2 or not behind else part.flatten(part.dim() - behind).sum(-1))
        return torch.stack(found).sum(0) if len(found) > 1 else found[0]

    def of_tokens(self, relevance: Sequence[Tensor]) -> list[Tensor]:
        """The relevance of each leaf [..., *leaf.shape] without what the model pads to the tokens."""
        fronts = {front.leaf: front for front in self.module._fronts}
        found = []
        for (name, leaf), part in zip(self.leaves.items(), relevance, strict=True):
            front = fronts.get(name)
            tokens = self.named.get(front.reads[0]) if front is not None and front.pads else None
            if front is not None and isinstance(tokens, Tensor):
                part = part.narrow(part.dim() - leaf.dim() + front.tokens - 1, 0, tokens.shape[-1])
            found.append(part)
        return found


def leaf_call(
    explained: Explained, positional: tuple[Any, ...], given: Mapping[str, Any], leaf: str | None, function: str
) -> LeafCall:
    """The call with these inputs. `leaf` names a leaf, or an input of tokens that leaves are made of; None means the first
    leaf, with all others that are made of the same tokens. Error messages name the `function`.

    Raises InputError for another name, and CallError for inputs that do not fit.
    """
    explained._refuse_hooks(function)
    named = explained._named(positional, given)
    module, bound = explained._prepared((), named)
    names = leaves_read(module, leaf, function)
    bound = pytree.tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, dict(bound))
    leaves = {name: value for name, value in module._new_leaves(bound).items() if name in names}
    if not leaves:
        raise InputError(f"{function}: {', '.join(names)} must be a floating-point tensor for relevance to be read there")
    return LeafCall(explained, module, named, with_leaves_in(bound, leaves), leaves)


def leaves_read(module: Explained, leaf: str | None, function: str) -> tuple[str, ...]:
    """The leaves of a module that `leaf` means, as in `leaf_call`."""
    leaves = module.record.leaves
    made_of = {front.leaf: front.reads for front in module._fronts if front.leaf in leaves}
    if leaf is not None and leaf in leaves:
        return (leaf,)
    reads = made_of.get(leaves[0], ()) if leaf is None else (leaf,)
    together = tuple(name for name, read in made_of.items() if reads and read[0] == reads[0])
    if leaf is not None and not together:
        tokens = _all_of(read[0] for read in made_of.values())
        more = f", or at all that is looked up by {', '.join(tokens)}" if tokens else ""
        raise InputError(f"{function}: relevance can be read at {', '.join(leaves)}{more}, not at {leaf!r}")
    return together or leaves[:1]


def _all_of(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
