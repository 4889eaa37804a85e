"""Every error that lxt_fx raises on purpose. Each says which node or argument, why, and what to do next."""

from __future__ import annotations


class LxtFxError(Exception):
    """Base of all errors raised on purpose by lxt_fx."""


class InputError(LxtFxError):
    """An argument of a public function cannot be used: wrong type, missing example inputs, a model in training mode."""


class CaptureError(LxtFxError):
    """Neither `torch.export` nor real-tensor `make_fx` could turn the model into a graph."""


class CallError(LxtFxError):
    """An explained module was called with inputs that it was not captured for."""


class SizeGuardError(CallError):
    """The sizes of the inputs are free in the graph, but a condition on them under which it was captured does not hold."""


class TracedBranchError(CallError):
    """A data-dependent branch of the model might go another way on these inputs than on the example of its traced graph."""


class ModelChangedError(CallError):
    """An explained module was called after its model changed in a way that the graph cannot follow: other tensors, modules
    or settings than those that it was captured from."""


class NoRuleError(LxtFxError):
    """With `strict=True`, no rule of the table accepts a node on the relevance path."""


class UnknownNameError(LxtFxError):
    """There is no rule table, stage, module or node with this name."""


class ForwardMismatchError(LxtFxError):
    """The rewritten graph does not compute what the model computes."""


class GradientMismatchError(LxtFxError):
    """The graph, before any rule, does not pass the gradient that the model passes."""


class LedgerError(LxtFxError):
    """A node absorbed relevance that its rule claims to conserve, or a ledger does not close."""


class NonFiniteError(LxtFxError):
    """A value or a relevance is NaN or infinite. The message names the first node where that happened."""


class UnsupportedVersionError(LxtFxError):
    """The installed torch or transformers lacks a private name that lxt_fx needs, or gives it another meaning."""
