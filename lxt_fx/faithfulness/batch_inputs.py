"""Inputs of several examples and the number explained in each, so that any choice of examples can be run again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.attribution.embeddings import Inputs, as_called
from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target import TargetFunction, TargetsLike, Wanted, is_list, target_by_example
from lxt_fx.attribution.target_entry import LogitEntry, Reading, entry_of, logits_of
from lxt_fx.attribution.text_input import TextInput, texts_of_logits
from lxt_fx.base.as_it_was import answer_of
from lxt_fx.base.errors import InputError
from lxt_fx.base.torch_internals import pytree
from lxt_fx.compiler.explained import Explained
from lxt_fx.passes.capture.example import Example, given_example, with_fills
from lxt_fx.passes.capture.opened_model import opened


@dataclass(frozen=True, slots=True, eq=False)
class BatchInputs:
    """Inputs of `model` by name. Tensors [examples, ...] have a part for each example, all other inputs are shared. `leaf`
    names the input at which relevance is read. `texts` are the texts whose positions the logits have. `fixed` is the only
    batch size that the graph accepts, None if it accepts any. Error messages name the `function` that the user called.
    `by_position` names the inputs that the model takes by position only."""

    model: nn.Module
    named: Mapping[str, Any]
    leaf: str
    texts: tuple[TextInput, ...]
    fixed: int | None
    function: str
    by_position: tuple[str, ...] = ()

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(self.values)

    @property
    def values(self) -> Tensor:
        """The leaf, [examples, ...]."""
        leaf: Tensor = self.named[self.leaf]
        return leaf

    @property
    def model_class(self) -> str:
        """The class of the user's model, also if `model` is an explained module."""
        return self.model.record.model_class if isinstance(self.model, Explained) else type(self.model).__name__

    def of(self, chosen: Sequence[int], leaf: Tensor) -> dict[str, Any]:
        """The inputs of the chosen examples, in this order, with another leaf [len(chosen), ...]."""
        index = torch.tensor(chosen, device=leaf.device)

        def taken(value: Any) -> Any:
            own = isinstance(value, Tensor) and value.dim() > 0 and len(value) == self.examples
            return value[index.to(value.device)] if own else value

        return {name: leaf if name == self.leaf else pytree.tree_map(taken, value) for name, value in self.named.items()}

    def output(self, chosen: Sequence[int], leaf: Tensor, model: nn.Module | None = None) -> Any:
        """The output for these examples with another leaf, of the model or of another module with the same inputs."""
        model, named = model or self.model, self.of(chosen, leaf)
        if isinstance(model, Explained):
            return model._called(*model._fitting(named))
        args, kwargs = Example(named, {}, positional=self.by_position).arguments()
        return answer_of(model, lambda: model(*args, **kwargs))

    def batches(self, count: int, most: int) -> Iterator[tuple[list[int], int]]:
        """The indices 0 to `count` - 1 in batches of at most `most`, each with the number of its indices that count. If the
        batch size is fixed, the last batch is filled up with copies of its last index."""
        size = self.fixed or most
        for start in range(0, count, size):
            batch = list(range(start, min(start + size, count)))
            yield batch + batch[-1:] * ((self.fixed or 0) - len(batch)), len(batch)


def batch_inputs(
    model: nn.Module, inputs: Inputs, leaf: str | None, tokenizer: Tokenizer | None, function: str
) -> BatchInputs:
    """The inputs of the graph by name, with what tokens are looked up as in their place. A model without a float input is
    transformed, to have such a graph.

    Raises InputError if they do not fit the model, or it is not clear which of them is the leaf.
    """
    model = opened(model, function)
    given = dict(inputs) if isinstance(inputs, Mapping) else {}
    positional = () if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    given = as_called(model, given)
    if not isinstance(model, Explained):
        example = given_example(model, positional, given)
        named = example.kwargs | example.constants
        if any(isinstance(t, Tensor) and t.is_floating_point() for t in named.values()):
            texts = tuple(texts_of_logits(named, named, tokenizer))
            found = _leaf(named, tuple(named), leaf, function)
            return _checked(BatchInputs(model, named, found, texts, None, function, example.positional))
        model = as_explained(model, positional, given, function, "gradient")  # which starts from what is looked up
    model._refuse_hooks(function)
    named = model._named(positional, given)
    module, own = model._for_names_of(named)
    bound = module._bound(with_fills(own, module.record.optional))
    found = _leaf(bound, module.record.leaves, leaf, function)
    bound = {name: pytree.tree_map_only(Tensor, Tensor.detach, value) for name, value in bound.items()}
    sizes = module.record.sizes.get(found, (None,))
    texts = tuple(texts_of_logits(named, bound, tokenizer))
    return _checked(BatchInputs(module, bound, found, texts, sizes[0], function))


def _checked(inputs: BatchInputs) -> BatchInputs:
    if inputs.values.dim() < 2 or not len(inputs.values):
        raise InputError(
            f"{inputs.function}: {inputs.leaf} has shape {list(inputs.values.shape)}; give a batch of inputs, "
            "[examples, ...]"
        )
    detached = {name: pytree.tree_map_only(Tensor, Tensor.detach, value) for name, value in inputs.named.items()}
    return replace(inputs, named=detached)


def _leaf(named: Mapping[str, Any], candidates: Sequence[str], wanted: str | None, function: str) -> str:
    floats = [n for n in candidates if isinstance(named.get(n), Tensor) and named[n].is_floating_point()]
    if wanted is not None and wanted not in floats:
        raise InputError(f"{function}: leaf={wanted!r} is none of the floating-point inputs: {', '.join(floats)}")
    if wanted is None and len(floats) != 1:
        several = f"several floating-point inputs: {', '.join(floats)}; say which one by leaf=..."
        none = "no floating-point tensors among the inputs; where a model takes token ids alone, give transform(model, ...)"
        raise InputError(f"{function}: there are {several if floats else none}")
    return wanted or floats[0]


@dataclass(frozen=True, slots=True, eq=False)
class ExplainedNumber:
    """The number that is explained in each example: an entry of its logits, or what a function of the output returns."""

    entries: tuple[LogitEntry, ...]
    function: TargetFunction | None
    reading: Reading

    @property
    def said(self) -> tuple[str, ...]:
        """The number as a phrase, for each example; one phrase for a function."""
        return tuple(entry.said for entry in self.entries) or ("a function of the output",)

    def values(self, output: Any, chosen: Sequence[int]) -> Tensor:
        """The numbers [len(chosen)] in the output for a batch of the chosen examples.

        Raises InputError for a function that does not return one number for each example of the batch.
        """
        if self.function is None:
            logits = logits_of(self.reading, output)
            return torch.stack([self.entries[example].of(logits[place]) for place, example in enumerate(chosen)])
        value = self.function(output)
        if isinstance(value, Tensor) and list(value.shape) == [len(chosen)]:
            return value
        got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"{self.reading.function}: examples run in batches, so a target function must return one number for each "
            f"example of the output that it gets, here [{len(chosen)}]; got {got}. Select one element of each, such as "
            "out.logits[:, -1, 17]"
        )


def explained_number(inputs: BatchInputs, target: TargetsLike, labels: Sequence[str] | None, batch: int) -> ExplainedNumber:
    """The number that a target means in each example, decided once, on the whole inputs.

    Raises InputError as `explain` does, and for a list whose length is not the number of examples.
    """
    reading = Reading.of(inputs.function, inputs.model, labels)
    if not is_list(target) and callable(target):
        return ExplainedNumber((), target, reading)
    given = target_by_example(target, inputs.examples, inputs.function)
    targets = [each for each in given if isinstance(each, Wanted)]
    if len(targets) != inputs.examples:
        raise InputError(f"{inputs.function}: a target function is for all examples; give it alone, not in a list")
    entries: list[LogitEntry] = []
    with evaluating(inputs.model):
        for chosen, count in inputs.batches(inputs.examples, batch):
            output = inputs.output(chosen, inputs.values[chosen])
            for place, example in enumerate(chosen[:count]):
                text = inputs.texts[example] if inputs.texts else None
                entries.append(entry_of(reading, targets[example], output, text, place))
    return ExplainedNumber(tuple(entries), None, reading)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients, and every module in evaluation mode, inside the block; both are restored afterwards."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
