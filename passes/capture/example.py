"""Example inputs for capture: made from a transformers model's config and forward signature, or given by the user.

A transformers text model is captured on `input_ids`, as it is called. Inputs that the model fills in when they are missing
(attention mask, positions, token types) become inputs of the graph too, so that padded batches work. A call without them
gets the values that the model would have used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.base.as_it_was import answer_of
from lxt_fx.base.errors import CallError, InputError
from lxt_fx.base.torch_internals import pytree, uncompiled
from lxt_fx.base.transformers_internals import without_cache
from lxt_fx.base.user_objects import as_given, holds_tensors, with_given_objects, with_made_objects
from lxt_fx.passes.capture.as_in_a_call import as_in_a_call
from lxt_fx.passes.capture.flex_attention import flex_attention_in_ops, flex_attention_mapped
from lxt_fx.passes.capture.offloaded import input_device
from lxt_fx.passes.capture.settings import SWITCHES, is_transformers
from lxt_fx.passes.capture.signature import bound_inputs, named_signature, order_by_position

BATCH, TOKENS = 2, 7
SEED = 0

Fill = Callable[[Tensor], Tensor]
"""Makes an optional input from the input [batch, tokens, ...] that it belongs to."""


def _ones(text: Tensor) -> Tensor:
    return torch.ones(text.shape[:2], dtype=torch.long, device=text.device)


def _zeros(text: Tensor) -> Tensor:
    return torch.zeros(text.shape[:2], dtype=torch.long, device=text.device)


def _positions(text: Tensor) -> Tensor:
    return torch.arange(text.shape[1], device=text.device).expand(text.shape[0], -1)


FILLS: dict[str, tuple[str, Fill]] = {
    "attention_mask": ("", _ones),
    "position_ids": ("", _positions),
    "token_type_ids": ("", _zeros),
    "decoder_attention_mask": ("decoder_", _ones),
}
"""Optional inputs: the prefix of the text whose shape they follow, and what makes the value of a missing one."""


FEATURES = ("input", "inputs", "features", "batch")
"""What models call the dict of a text's features that is their only input."""

WITH_A_TEXT = frozenset(name for name, (prefix, _) in FILLS.items() if not prefix)
"""What people give beside token ids whether the model's forward names it or not."""

PASSED_ON = frozenset({"cache_position"})
"""What code that generates text gives beside these; the newest models ignore it."""


def with_fills(given: Mapping[str, Any], optional: Iterable[str]) -> dict[str, Any]:
    """The inputs, with a value for each missing optional one whose text is there, as ids or as embeddings. One that is
    given once for the whole batch (`position_ids` [1, tokens]) is given to each text."""
    filled = dict(given)
    for name in optional:
        prefix, fill = FILLS[name]
        text = given.get(f"{prefix}input_ids", given.get(f"{prefix}inputs_embeds"))
        if not isinstance(text, Tensor):
            continue
        if text.dim() < 2:
            raise CallError(
                f"{prefix}input_ids must be [batch, tokens], got {list(text.shape)}; one text is a batch of 1: "
                "input_ids[None]"
            )
        if name not in given:
            filled[name] = fill(text)
        elif isinstance(value := given[name], Tensor) and value.dim() == 2 and len(value) == 1:
            filled[name] = value.expand(text.shape[0], -1)
    return filled


@dataclass(frozen=True, slots=True)
class Example:
    """The inputs that capture runs on. `kwargs` are tensor inputs by the names of forward's parameters, `optional` names
    those that a call may leave out, and `constants` are other arguments, fixed in the graph. `dynamic_dims` says how many
    leading dims a call may change (`None`: all of them, of images the batch). `made` says that no user gave it.
    `positional` names the inputs that the model takes by position only. `order` are the names in the order in which the
    model takes them by position, also those that are not in the example. `instead` are made examples, which are tried in
    turn if the model fails on this one."""

    kwargs: dict[str, Any]
    constants: dict[str, Any]
    optional: tuple[str, ...] = ()
    dynamic_dims: int | None = None
    made: bool = False
    positional: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    instead: tuple[Example, ...] = ()

    def free_dims(self, name: str, tensor: Tensor) -> int:
        """How many leading dims of this input a call may change. Height and width of images are fixed: models compute
        windows, grids and position tables from them, and with free ones torch.export takes minutes for a Swin. A mask
        [batch, 1, tokens, tokens] is no image."""
        if self.dynamic_dims is not None:
            return min(self.dynamic_dims, tensor.dim())
        image = tensor.dim() > 3 and tensor.is_floating_point() and "mask" not in name
        return 1 if image else tensor.dim()

    def without(self, names: tuple[str, ...]) -> Example:
        """The same example without these inputs."""
        others = {name: value for name, value in self.kwargs.items() if name not in names}
        return replace(self, kwargs=others, optional=tuple(name for name in self.optional if name not in names))

    def as_captured(self, inputs: Iterable[str], optional: tuple[str, ...]) -> Example | None:
        """The example as it was captured before, with these inputs, of which some are optional. Of a made one it is the way
        to call the model that has them, without what the model refuses. None if there is no such way."""
        names = set(inputs)
        for way in (self, *self.instead):
            if names == way.kwargs.keys() or self.made and names < way.kwargs.keys():
                return replace(way.without(tuple(way.kwargs.keys() - names)), optional=optional)
        return None

    def doubled(self) -> Example | None:
        """The example with batch 2 if every input has batch 1, else None: a size of 1 would be fixed in the graph."""
        tensors = [t for t in pytree.tree_leaves(self.kwargs) if isinstance(t, Tensor)]
        if any(t.dim() == 0 or t.shape[0] != 1 for t in tensors):
            return None
        twice = pytree.tree_map(lambda t: torch.cat([t, t]) if isinstance(t, Tensor) else t, self.kwargs)
        return replace(self, kwargs=twice)

    def arguments(self, without: tuple[str, ...] = ()) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the model is called with: positional arguments and others, in the classes that the user gave."""
        given = {name: as_given(value) for name, value in (self.kwargs | self.constants).items() if name not in without}
        return tuple(given.pop(name) for name in self.positional), given

    def copied(self) -> Example:
        """The example with copies of its tensors, for a run that may write into them: CTRL scales its embeddings in
        place."""
        return replace(self, kwargs=pytree.tree_map_only(Tensor, Tensor.clone, dict(self.kwargs)))

    def call(self, model: nn.Module, without: tuple[str, ...] = ()) -> Any:
        """The model's output on this example, from a fixed random state, without caches, as in a call whose inputs ask for
        a gradient. The model is put back as it was before (`answer_of`). To be called inside `torch_state_restored`."""
        args, kwargs = self.copied().arguments(without)
        torch.manual_seed(SEED)
        flex = flex_attention_in_ops if torch.is_grad_enabled() else flex_attention_mapped
        with without_cache(model), uncompiled(model), flex(model), as_in_a_call(model):
            return answer_of(model, lambda: with_made_objects(model(*args, **kwargs)))


def given_example(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Example:
    """The user's example, bound to the names of forward's parameters.

    Raises InputError where the arguments do not fit the signature or contain no tensor.
    """
    if not isinstance(args, tuple):
        written = "kwargs=inputs" if isinstance(args, Mapping) else "(x,)"
        raise InputError(
            f"transform: args must be a tuple of example inputs, got {type(args).__name__}; write "
            f"transform(model, {written})"
        )
    named, positional = bound_inputs(model, args, _without_idle_switch(model, kwargs))
    tensors = {name: with_given_objects(value) for name, value in named.items() if holds_tensors(value)}
    constants = {name: _own(value) for name, value in named.items() if name not in tensors}
    if not tensors:
        raise InputError(
            f"transform: none of the example inputs {sorted(named)} of {type(model).__name__} is a tensor, and relevance "
            "is read at one of them. Give the token ids, embeddings, pixels or features that the model starts from"
        )
    tensors = pytree.tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, tensors)
    constants |= _switches(model, named)
    return Example(tensors, constants, positional=positional, order=order_by_position(model, named))


def own_features(model: nn.Module) -> dict[str, Tensor] | None:
    """The features of two texts, as a model that takes them in one dict and brings its tokenizer makes them (a
    SentenceTransformer); None for any other."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    names = [p.name for p in named_signature(model).parameters.values() if p.kind not in kinds]
    tokenizer = getattr(model, "tokenizer", None)
    if len(names) != 1 or names[0] not in FEATURES or not callable(tokenizer):
        return None
    made = tokenizer(["This is a text.", "And this is another one, which is longer."], padding=True, return_tensors="pt")
    device = input_device(model)
    return {name: value.to(device) for name, value in made.items() if isinstance(value, Tensor)}


def _own(value: Any) -> Any:
    """A setting with lists and dicts of its own, which the caller may change afterwards."""
    return pytree.tree_map(lambda leaf: leaf, value)


def _without_idle_switch(model: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The inputs without a `use_cache=False` that forward does not take: caches are off in any case."""
    parameters = inspect.signature(model.forward).parameters
    takes = "use_cache" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    idle = not takes and kwargs.get("use_cache") is False
    return {name: value for name, value in kwargs.items() if not (idle and name == "use_cache")}


def made_example(model: nn.Module) -> Example:
    """Example inputs of a transformers model, from its config and forward signature: its main input and what it requires.
    `instead` has further ways to call it: with text, image and sound together (CLIP), and with several texts for each
    question (multiple choice).

    Raises InputError where the model needs an input that cannot be made from its config.
    """
    parameters = named_signature(model).parameters
    needed = {p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    main = dict(_main_inputs(model, str(model.main_input_name), set(parameters)))
    others = {} if needed <= main.keys() | {"input_ids"} else _of_every_kind(model, set(parameters))
    inputs = {name: value for name, value in others.items() if name in needed} | main
    example = _example_of(model, inputs)
    missing = [name for name in parameters if name in needed and name not in example.kwargs and name != "input_ids"]
    if missing:
        raise InputError(
            f"transform: {type(model).__name__} also needs {', '.join(missing)}, which cannot be made from its config; "
            "give an example: transform(model, kwargs={...})"
        )
    return replace(example, instead=tuple(_other_ways(model, set(parameters), example)))


def _example_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Example:
    """A made example of these inputs and of those that the model fills in itself, in the order of forward's signature."""
    parameters = named_signature(model).parameters
    filled = with_fills(inputs, [name for name in FILLS if name in parameters])
    optional = tuple(name for name in filled if name not in inputs)
    kwargs = {name: filled[name].clone() for name in parameters if name in filled}
    dims = 2 if any(name.endswith(("input_ids", "inputs_embeds")) for name in inputs) else 1
    return Example(kwargs, _switches(model, kwargs), optional, dims, made=True, order=order_by_position(model, kwargs))


def _other_ways(model: nn.Module, parameters: set[str], first: Example) -> Iterator[Example]:
    """Further ways to call a model that fails on its main input alone."""
    whole = _of_every_kind(model, parameters)
    if not whole.keys() <= first.kwargs.keys():
        yield _example_of(model, whole)
    ids = first.kwargs.get("input_ids")
    if isinstance(ids, Tensor) and not whole.keys() - {"input_ids"}:
        choices = {"input_ids": torch.stack([ids, ids.flip(0)], 1)}  # [batch, choices, tokens]
        yield replace(first, kwargs=choices, optional=(), constants=_switches(model, choices), dynamic_dims=None)


def _of_every_kind(model: nn.Module, parameters: set[str]) -> dict[str, Tensor]:
    """A text, an image and a sound, as far as the model takes them."""
    generator = torch.Generator().manual_seed(SEED)
    made = dict[str, Tensor]()
    if {"input_ids", "inputs_embeds"} & parameters:
        made |= dict(_text_inputs(model, parameters, generator))
    for name in SIGNALS:
        if name in parameters:
            made[name] = _signal(model, name, generator)
    return made


def _switches(model: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """`use_cache=False` and `return_dict=True`, where forward has these parameters and the user has not set them."""
    if not is_transformers(model):
        return {}
    parameters = named_signature(model).parameters
    return {name: value for name, value in SWITCHES.items() if name in parameters and name not in given}


def _main_inputs(model: nn.Module, main: str, parameters: set[str]) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(SEED)
    if main == "input_ids":
        yield from _text_inputs(model, parameters, generator)
        return
    if main not in SIGNALS:
        raise InputError(
            f"transform: the main input of {type(model).__name__} is {main}, which cannot be made from its config; give "
            "an example: transform(model, kwargs={...})"
        )
    yield main, _signal(model, main, generator)
    yield from _text(model, "decoder_", TOKENS - 2, parameters, generator)


def _signal(model: nn.Module, name: str, generator: torch.Generator) -> Tensor:
    """A random image or sound of the size that the model's config says."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.randn(SIGNALS[name](model.config), generator=generator).to(input_device(model), dtype)


def _text_inputs(model: nn.Module, parameters: set[str], generator: torch.Generator) -> Iterator[tuple[str, Any]]:
    yield from _text(model, "", TOKENS, parameters, generator)
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False):
        yield from _text(model, "decoder_", TOKENS - 2, parameters, generator)


def _text(
    model: nn.Module, prefix: str, tokens: int, parameters: set[str], generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """The ids [BATCH, tokens] of random tokens that are not special, with the end of text as the last one, by which some
    models pool; or their embeddings, where the model takes no ids."""
    ids_name, embeds_name = f"{prefix}input_ids", f"{prefix}inputs_embeds"
    if not {ids_name, embeds_name} & parameters:
        return
    embedding: Any = token_embedding(model)
    vocabulary = getattr(embedding, "num_embeddings", None) or getattr(text_config(model), "vocab_size", None)
    if not isinstance(vocabulary, int):
        raise InputError(
            f"transform: {type(model).__name__} has no token embedding and no vocab_size to make {ids_name} from; give an "
            f"example: transform(model, kwargs={{'{ids_name}': ...}})"
        )
    ids = usual_tokens(model, vocabulary, (BATCH, tokens), generator)
    end = getattr(text_config(model), "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < vocabulary:
        ids[:, -1] = end
    ids = ids.to(input_device(model))
    if ids_name in parameters:
        yield ids_name, ids
        return
    with torch.no_grad():
        yield embeds_name, embedding(ids).detach().clone()


def usual_tokens(model: nn.Module, vocabulary: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random tokens [*size], on the CPU, none of which is special."""
    usual = torch.ones(vocabulary, dtype=torch.bool, device="cpu")  # also where new tensors are made on another device
    usual[[token for token in special_tokens(model) | {0, 1, 2} if 0 <= token < vocabulary]] = False
    choices = usual.nonzero()[:, 0] if usual.any() else torch.arange(vocabulary, device="cpu")
    return choices[torch.randint(len(choices), size, generator=generator, device="cpu")]


def text_config(model: nn.Module) -> Any:
    """The part of the model's config that is about text; the config itself if it has no parts."""
    config: Any = getattr(model, "config", None)
    return getattr(config, "text_config", None) or config


def special_tokens(model: nn.Module) -> set[int]:
    """The ids of tokens that mean something to the model's code: every number of the config that is called so."""
    found = set[Any]()
    for config in (getattr(model, "config", None), text_config(model)):
        for name, token in vars(config).items() if config is not None else ():
            if name.endswith(("token_id", "token_index")):
                found.update(token if isinstance(token, (list, tuple)) else [token])
    return {token for token in found if isinstance(token, int)}


def token_embedding(model: nn.Module) -> nn.Module | None:
    """The module that turns token ids into the input embeddings, where the model names one."""
    getter: Any = getattr(model, "get_input_embeddings", None)
    try:
        embedding = None if getter is None else getter()
    except NotImplementedError:  # transformers' answer for models without tokens
        return None
    return embedding if isinstance(embedding, nn.Module) else None


def _image_shape(config: Any) -> tuple[int, ...]:
    config = getattr(config, "vision_config", None) or config
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else tuple(size)[:2]
    return BATCH, getattr(config, "num_channels", 3), height, width


def _feature_shape(config: Any) -> tuple[int, ...]:
    if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
        return BATCH, config.num_mel_bins, 2 * config.max_source_positions
    frames = getattr(config, "max_length", 128)
    names = ("num_mel_bins", "feature_size", "input_feat_per_channel")
    return BATCH, frames, next((getattr(config, name) for name in names if hasattr(config, name)), 80)


def _wave_shape(config: Any) -> tuple[int, ...]:
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        return BATCH, config.max_length, config.num_mel_bins
    return BATCH, 16000


SIGNALS: dict[str, Callable[[Any], tuple[int, ...]]] = {
    "pixel_values": _image_shape,
    "input_features": _feature_shape,
    "input_values": _wave_shape,
}
"""The inputs that are images or sounds, each with the shape that a config gives it."""
