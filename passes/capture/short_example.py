"""A long text cut short, for the checks that compare graph and model more than once."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lxt_fx.base.torch_internals import pytree
from lxt_fx.passes.capture.called_by_leaf import leaf_names
from lxt_fx.passes.capture.example import Example

SHORT = 16
"""How many tokens of a longer text the checks run on. A graph with free sizes has no branch that longer texts take."""


def short_example(example: Example) -> Example | None:
    """The example with at most SHORT tokens of each text: the first, or the last where texts are padded in front. None if
    no text is longer, if an input is not along the tokens of a text (pictures have tokens that stand for them), or if
    nothing but padding would be left of a text."""
    leaves, spec = pytree.tree_flatten(example.kwargs)
    named = list(zip(leaf_names(example.kwargs), leaves, strict=True))
    texts = {x.shape[1] for name, x in named if isinstance(x, Tensor) and _is_text(name, x)}
    longer = {length for length in texts if length > SHORT}
    masks = [x for name, x in named if isinstance(x, Tensor) and name.endswith("attention_mask") and x.dim() == 2]
    if not longer:
        return None
    from_end = any(bool((mask[:, 0] == 0).any()) for mask in masks)
    cut = []
    for name, leaf in named:
        if not isinstance(leaf, Tensor):
            cut.append(leaf)
            continue
        dims = [dim for dim in range(1, leaf.dim()) if leaf.shape[dim] in texts]
        if name.endswith("embeds"):
            dims = dims[:1]  # the size of a hidden state may be that of the text
        elif not dims or (leaf.is_floating_point() and "mask" not in name):
            return None
        for dim in dims:
            if leaf.shape[dim] in longer:
                leaf = leaf.narrow(dim, leaf.shape[dim] - SHORT if from_end else 0, SHORT)
        if name.endswith("attention_mask") and leaf.dim() == 2 and not bool((leaf != 0).any(1).all()):
            return None
        cut.append(leaf.clone())
    return replace(example, kwargs=pytree.tree_unflatten(cut, spec))


def _is_text(name: str, value: Tensor) -> bool:
    ids, embeddings = name.endswith("input_ids") and value.dim() == 2, name.endswith("inputs_embeds") and value.dim() == 3
    return ids or embeddings
