"""Every error that lxt_fx raises on purpose. Each says which node or argument, why, and what to do next."""

from __future__ import annotations


class LxtFxError(Exception):
    """Base of all errors raised on purpose by lxt_fx."""


class InputError(LxtFxError):
    """An argument of the public door cannot be used: wrong type, missing examples, a training-mode model."""


class CaptureError(LxtFxError):
    """Neither `torch.export` nor real-tensor `make_fx` could turn the model into a graph."""


class CallError(LxtFxError):
    """An explained module was called with inputs that it was not captured for."""


class OtherWayError(CallError):
    """The model's Python code would take another way on these inputs than on those that its graph was traced with."""


class NoRuleError(LxtFxError):
    """Under `strict=True` a node on the relevance path has no row in the rule table."""


class UnknownNameError(LxtFxError):
    """A rule table, stage or module pattern of that name does not exist."""


class ForwardMismatchError(LxtFxError):
    """The rewritten graph does not compute what the model computes."""


class LedgerError(LxtFxError):
    """A node kept relevance that its rule does not account for, or a ledger does not close."""


class NonFiniteError(LxtFxError):
    """A value or a relevance is NaN or infinite; the message names the first node where it happened."""


class UnsupportedVersionError(LxtFxError):
    """The installed torch or transformers lacks a private name that lxt_fx needs, or gives it another meaning."""
