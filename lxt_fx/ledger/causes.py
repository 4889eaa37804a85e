"""Why relevance that reached a node did not leave it, and how much each constant absorbed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor


class Cause(Enum):
    """Why relevance that reached a node did not leave it through a carrying operand."""

    BIAS = "bias"
    CONSTANT = "added constant"
    POSITION = "positions"
    INTERCEPT = "activation at 0"
    OFFSET = "softmax offset"
    EPSILON = "epsilon"
    ONE_SIDED = "contributions of one sign"
    ZERO = "inputs of 0"
    SELECTION = "selection"
    HELD = "held operand"
    NATIVE = "native gradient"
    ERROR = "reconstruction error"
    FEATURE = "features"
    OWN_BACKWARD = "own backward"
    KERNEL = "packed kernel"
    NO_RULE = "no rule"
    TARGET = "target"
    UNACCOUNTED = "not accounted for"

    @property
    def meaning(self) -> str:
        """One line for the reader of a ledger."""
        return _MEANINGS[self]

_MEANINGS = {
    Cause.BIAS: "the share of a bias in a sum",
    Cause.CONSTANT: "the share of another constant in a sum: position, token type, CLS, mask",
    Cause.POSITION: "the share of the positions by which queries and keys are rotated",
    Cause.INTERCEPT: "f(0) of an activation, which acts like a bias",
    Cause.OFFSET: "the constant term of the softmax's Taylor expansion",
    Cause.EPSILON: "the share of the epsilon that stabilises a division",
    Cause.ONE_SIDED: "a rule splits by the sign of contributions, and there were none of that sign",
    Cause.ZERO: "elements that are 0: value * gradient cannot carry what their rule gives them",
    Cause.SELECTION: "a constant was selected in the place of a value",
    Cause.HELD: "the share of a summand that a rule or the model holds constant",
    Cause.NATIVE: "a rule that claims nothing: native gradient",
    Cause.ERROR: "what a dictionary that was spliced in does not explain of a value, e = h - (sum_k f_k d_k + b)",
    Cause.FEATURE: "features of a dictionary at which relevance was told to end (stop=True)",
    Cause.OWN_BACKWARD: "an autograd.Function whose own backward is not the gradient of its forward",
    Cause.KERNEL: "what the kernel of a packed layer rounds: its values less those of the unpacked weights",
    Cause.NO_RULE: "a node without a rule (strict=False): native gradient",
    Cause.TARGET: "the explained number less output * gradient: the target is not linear in the output",
    Cause.UNACCOUNTED: "no rule claims it: rounding, or a rule that does not conserve what it claims",
}


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What one constant absorbs of the relevance that reaches a node. `name` says which constant; amount is a scalar."""

    cause: Cause
    name: str
    amount: Tensor
