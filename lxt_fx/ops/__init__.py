"""The ops that a rewritten graph calls, as `torch.ops.lxt_fx.*`. Each name in these modules is the op's overload.

Importing this registers all of them, so that a graph that holds them can be loaded.
"""

from lxt_fx.ops import (
    activations,
    active,
    contributions,
    exempt,
    expectations,
    experts,
    explicit,
    explicit_contributions,
    fused,
    gradient_product,
    head,
    moves,
    norms,
    own_backward,
    packed,
    patches,
    products,
    recurrences,
    scores,
    selection,
    sources,
    steering,
)

__all__ = [
    "activations",
    "active",
    "contributions",
    "exempt",
    "expectations",
    "experts",
    "explicit",
    "explicit_contributions",
    "fused",
    "gradient_product",
    "head",
    "moves",
    "norms",
    "own_backward",
    "packed",
    "patches",
    "products",
    "recurrences",
    "scores",
    "selection",
    "sources",
    "steering",
]
