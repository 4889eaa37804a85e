"""The ops that a rewritten graph calls, as `torch.ops.lxt_fx.*`. Each name here is the op's overload."""

from lxt_fx.ops import activations, norms, products

__all__ = ["activations", "norms", "products"]
