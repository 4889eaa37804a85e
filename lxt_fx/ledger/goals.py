"""What an audit asks: one number for each example of a batch, of a module that can be audited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lxt_fx.attribution.target import TargetFunction, TargetsLike, is_list, target_by_example
from lxt_fx.attribution.target_entry import Choice, Reading, choose, name_of, said_of
from lxt_fx.attribution.text_input import TextInput
from lxt_fx.base.errors import InputError
from lxt_fx.base.torch_internals import pytree
from lxt_fx.compiler.explained import Explained


def check_form(explained: Explained) -> None:
    """Raises InputError for a module in explicit form."""
    if explained.record.form != "gradient":
        raise InputError("audit: it reads the fast form; transform the model without form='explicit', which gives the same")


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What is explained in each example; the target of an example is read with the text of that example, if there is
    one."""

    reading: Reading
    target: TargetsLike
    texts: Sequence[TextInput]

    def goals(self, output: Any) -> list[Choice]:
        """One number for each example."""
        examples = _batch(output)
        if not is_list(self.target) and callable(self.target):
            return _by_function(self.target, output, examples)
        goals = [
            choose(self.reading, target, output, self.texts[example] if self.texts else None, example)
            for example, target in enumerate(target_by_example(self.target, examples, "audit"))
        ]
        return [_checked(goal) for goal in goals]


def _batch(output: Any) -> int:
    tensors = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.dim()]
    return tensors[0].shape[0] if tensors else 1


def _by_function(function: TargetFunction, output: Any, examples: int) -> list[Choice]:
    value = function(output)
    fits = isinstance(value, Tensor) and (value.numel() == 1 or list(value.shape) == [examples])
    if not fits:
        got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"audit: the target function {name_of(function)} must return one number for each of the {examples} examples, "
            f"[{examples}], or a scalar; got {got}. Select one element of each, such as out.logits[:, -1].amax(-1)"
        )
    return [_checked(Choice(item, said_of(function))) for item in value.reshape(-1)]


def _checked(goal: Choice) -> Choice:
    if not goal.value.requires_grad:
        raise InputError(
            f"audit: {goal.said} does not depend on the input by a differentiable path, so there is nothing to audit; "
            "return a number computed from the output, without detach, item or argmax"
        )
    return goal
