"""From the inputs of a call to those of the graph: their names, what is missing or was not captured, the leaves that are
looked up by tokens, and whether the graph is valid for their sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import CodeType
from typing import Any

from torch import Tensor

from lxt_fx.base.errors import CallError, SizeGuardError
from lxt_fx.base.torch_internals import pytree
from lxt_fx.base.user_objects import holds_tensors, with_given_objects
from lxt_fx.compiler.nested_inputs import checked_leaves
from lxt_fx.compiler.record import Record
from lxt_fx.compiler.size_guards import holds, reads_a_one
from lxt_fx.passes.canonical.cut_at_lookups import Front
from lxt_fx.passes.capture.called_by_leaf import leaf_values
from lxt_fx.passes.capture.settings import OMITTED, SWITCHES, same_setting

Fronts = tuple[Front, ...]

_OUTPUTS = {
    "output_attentions": "attentions",
    "output_hidden_states": "hidden_states",
    "output_router_logits": "router_logits",
}
"""Settings that ask for outputs, with how the names of these end."""


def repeated_settings(out_spec: pytree.TreeSpec) -> dict[str, Any]:
    """Settings that a call may repeat, since a graph with this output has them. Whether it has hidden states and attentions
    is read off the names of its outputs: also a config may ask for them, and a tuple does not say."""
    names = set(_names_in(pytree.tree_unflatten([0] * out_spec.num_leaves, out_spec)))
    if not names:
        return SWITCHES
    return SWITCHES | {setting: any(name.endswith(own) for name in names) for setting, own in _OUTPUTS.items()}


def _names_in(output: Any) -> Iterator[str]:
    if isinstance(output, Mapping):
        yield from map(str, output)
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        for item in output:
            yield from _names_in(item)


def named_inputs(
    record: Record, fronts: Fronts, args: tuple[Any, ...], kwargs: Mapping[str, Any], repeated: Mapping[str, Any] = SWITCHES
) -> dict[str, Any]:
    """The inputs by name, without those that are None or constants of the graph, and without `use_cache`: a graph has no
    cache, and the answer is the same. `repeated` are settings that a call may repeat. Settings that every call of the graph
    must repeat are there in any case, as OMITTED if they are left out. Inputs inside lists and dicts are named as the
    inputs of the graph are, if these are cut apart. Raises CallError for more inputs than the module takes, for one that is
    given twice, and for token ids that are no tensor."""
    order = record.order or record.called_with
    for value in args:
        if isinstance(value, Mapping) and set(value) <= {*order, *record.inputs} and "input_ids" in value:
            raise CallError(
                f"{record.model_class}: a {type(value).__name__} with {', '.join(value)} was given as one input; give what "
                "is in it by name, as the model takes it: explained(**inputs)"
            )
    if len(args) > len(order):
        taken = f"{len(order)} ({', '.join(order)})" if order else "none"
        raise CallError(f"{record.model_class}: called with {len(args)} inputs by position, and it takes {taken}")
    positional = {_for_position(record, fronts, *pair): pair[1] for pair in zip(order[: len(args)], args, strict=True)}
    if twice := [name for name in positional if name in kwargs]:
        raise CallError(f"{record.model_class}: {twice[0]} is given by position and by name; give it once")
    given, reads = {**positional, **kwargs}, _reads(fronts)
    named = {
        name: value if isinstance(value, Tensor) else with_given_objects(value)
        for name, value in given.items()
        if isinstance(value, Tensor) or not _says_nothing(record, name, value, repeated)
    }
    named.update({name: OMITTED for name in record.to_repeat if name not in given})  # torch.compile of 2.6 knows no |=
    for name in reads & given.keys():
        if not isinstance(given[name], Tensor) and given[name] is not None:
            raise CallError(
                f"{record.model_class}: {name} must be a tensor of token ids, got {type(given[name]).__name__}; a "
                'tokenizer makes one of a text: explained(**tokenizer(text, return_tensors="pt"))'
            )
    if any(name not in record.called_with for name in reads):
        settings = settings_in(record, fronts, named)
        for name, value in list(named.items()):
            if not isinstance(value, Tensor) and name not in record.inputs and name not in settings:
                named.update(leaf_values({name: value}))
    return named


def _for_position(record: Record, fronts: Fronts, name: str, value: Any) -> str:
    """The name of a positional input. If a text is expected there, a floating-point tensor is its embeddings, and a
    tensor of whole numbers its tokens."""
    if not isinstance(value, Tensor) or any(front.reads[0] == name and front.reads_floats for front in fronts):
        return name
    if not value.is_floating_point():
        return name.replace("inputs_embeds", "input_ids")
    embeds = name.replace("input_ids", "inputs_embeds")
    if name not in record.called_with and embeds in record.called_with:
        return embeds
    leaves = [front.leaf for front in fronts if front.reads == (name,)]
    return leaves[0] if len(leaves) == 1 and name not in record.leaves else name


def _reads(fronts: Fronts) -> set[str]:
    return {read for front in fronts for read in front.reads}


def why_not(record: Record, fronts: Fronts, named: Mapping[str, Any], takes: frozenset[str] | None) -> str | None:
    """Why the graph is not made for inputs of these names; None if it is. `takes` are the names that the model has, if that
    is known."""
    reads = _reads(fronts)
    for name, value in named.items():
        if name in record.called_with or name in record.inputs or name in reads or _is_baked(record, name, value):
            if name not in record.leaves and name not in reads and has_other_dims(record, name, value):
                return _other_shape(record, name, value)
            continue
        return _not_captured(record, fronts, name, takes) if value is not OMITTED else _left_out(record, name)
    made = {front.leaf: front for front in fronts}
    missing = []
    for name in record.inputs:
        if name in named or name in record.optional:
            continue
        front = made.get(name)
        if front is None or not all(read in named for read in front.reads):
            missing.append(name if front is None else front.reads[0])
    if missing:
        return (
            f"{record.model_class}: the call has no {', '.join(dict.fromkeys(missing))}; the module was captured with "
            f"{', '.join(record.called_with)}"
        )
    for name, front in made.items():
        if name in named and name not in record.given_alone and not all(read in named for read in front.reads):
            return (
                f"{record.model_class} answers to {name} alone differently than to {', '.join(front.reads)}, which it "
                f"was captured with; give both, as explained.with_leaves({front.reads[0]}=...) does"
            )
    return None


def has_other_dims(record: Record, name: str, value: Any) -> bool:
    """Whether the input has more or fewer dims than the graph was captured for, as a mask [batch, 1, tokens, tokens]."""
    sizes = record.sizes.get(name)
    return sizes is not None and isinstance(value, Tensor) and value.dim() != len(sizes)


def _other_shape(record: Record, name: str, value: Tensor) -> str:
    shown = [("any" if size is None else size) for size in record.sizes[name]]
    return (
        f"{record.model_class}: {name} has shape {list(value.shape)}, the graph was captured for {shown}; transform the "
        'model again with an example of this shape, or once with dynamic="recapture"'
    )


def graph_inputs(record: Record, fronts: Fronts, filled: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of the graph by name; leaves that are not given are computed from their tokens."""
    made = {front.leaf: front for front in fronts}
    return {name: filled[name] if name in filled else made[name](filled) for name in record.inputs}


def settings_in(record: Record, fronts: Fronts, named: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that are settings of the model: they hold no tensor, and a graph has them as constants."""
    known = {*record.called_with, *record.inputs, *_reads(fronts)}
    return {name: value for name, value in named.items() if name not in known and not holds_tensors(value)}


def _is_baked(record: Record, name: str, value: Any) -> bool:
    return name in record.constants and same_setting(record.constants[name], value)


def _says_nothing(record: Record, name: str, value: Any, repeated: Mapping[str, Any]) -> bool:
    """Whether a call with this value is one without it: one that the graph has as a constant, or a None."""
    if name == "use_cache" and isinstance(value, bool):
        return True
    if name in record.to_repeat:
        return False
    if value is None:
        return name in SWITCHES or record.constants.get(name) is None
    if name in record.called_with:
        return False
    is_repeated = name in repeated and same_setting(repeated[name], value)
    return _is_baked(record, name, value) or name not in record.constants and is_repeated


def _left_out(record: Record, name: str) -> str:
    had = f" ({record.constants[name]!r})" if name in record.constants else ""
    return (
        f"{record.model_class}: the call leaves out {name}, for which the model then takes another value than the example "
        f"had{had}, which is baked into the graph; give the value of the example, or transform the model without {name}"
    )


def _not_captured(record: Record, fronts: Fronts, name: str, takes: frozenset[str] | None) -> str:
    if name in record.constants:
        return (
            f"{record.model_class}: {name}={record.constants[name]!r} is baked into the graph; transform the model "
            f"again with {name} among the example inputs"
        )
    if name == "input_ids" and "inputs_embeds" in record.inputs:
        return (
            f"{record.model_class}: this module was captured by inputs_embeds, and the model that it was made from is "
            "not there to capture it by ids: call it with inputs_embeds=lxt_fx.embed(explained, input_ids)"
        )
    if name == "labels":
        return f"{record.model_class}: labels were not captured; choose a logit of the output and call backward on it"
    known = {*record.inputs, *_reads(fronts)}
    if (within := next((outer for outer in record.called_with if f"{outer}_{name}" in known), None)) is not None:
        return (
            f"{record.model_class}: {name} is inside the input {within}; give that input whole, as the model takes it: "
            f"explained({within}={{'{name}': ...}}), or {{'{within}': {{'{name}': ..., ...}}}} where inputs are named"
        )
    if takes is not None and name not in takes:
        close = get_close_matches(name, [*record.called_with, *record.inputs, *takes], n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        taken = ", ".join(dict.fromkeys([*record.called_with, *record.inputs]))
        return f"{record.model_class}: the model has no input {name}; this module takes {taken}{meant}"
    return (
        f"{record.model_class}: input {name} was not captured (captured: {', '.join(record.called_with)}); transform "
        f"the model again with {name} among the example inputs: transform(model, kwargs={{'{name}': ..., ...}})"
    )


def check_valid(
    record: Record, guards: Sequence[tuple[str, CodeType]], captured: pytree.TreeSpec, bound: Mapping[str, Any]
) -> None:
    """Raises CallError for inputs whose nesting, sizes or constants the graph was not captured for, and where a guard does
    not hold (SizeGuardError)."""
    ordered = {name: bound[name] for name in record.inputs}
    leaves = checked_leaves(ordered, captured, record.constants, record.model_class)
    if (name := of_other_size(record.sizes, leaves)) is not None:
        raise CallError(_other_shape(record, name, leaves[name]))
    check_guards(record.model_class, guards, leaves)


def check_guards(model_class: str, guards: Sequence[tuple[str, CodeType]], leaves: Mapping[str, Any]) -> None:
    """Raises SizeGuardError for inputs of sizes for which one of the conditions is false."""
    if (guard := false_guard(guards, leaves)) is not None:
        raise SizeGuardError(
            f"{model_class}: the graph is valid only if {_short(guard)}, which is false for these inputs; "
            "transform the model again with an example of these shapes, or once with dynamic=\"recapture\""
        )


def of_other_size(sizes: Mapping[str, tuple[int | None, ...]], leaves: Mapping[str, Any]) -> str | None:
    """The first tensor that has not the sizes of the graph, where None stands for a free one; None if there is none."""
    for name, wanted in sizes.items():
        value = leaves.get(name)
        if isinstance(value, Tensor) and (
            value.dim() != len(wanted) or any(s not in (None, n) for s, n in zip(wanted, value.shape, strict=True))
        ):
            return name
    return None


def false_guard(guards: Sequence[tuple[str, CodeType]], leaves: Mapping[str, Any]) -> str | None:
    """The first condition that does not hold for these tensors; None if all hold. A guard that is false only because a size
    is 1 holds for that size too."""
    return next((guard for guard, code in guards if not holds(code, leaves) and not reads_a_one(guard, leaves)), None)


def _short(guard: str) -> str:
    """The guard, cut short: some are thousands of characters long."""
    return guard if len(guard) <= 200 else f"{guard[:200]}..."
