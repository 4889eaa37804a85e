"""Example inputs for capture: made from a transformers model's config and forward signature, or given by the user.

A transformers text model is captured on `inputs_embeds`, the float input at which relevance is read. Inputs that the model
fills in when they are missing (attention mask, positions, token types) become inputs of the graph too, so that padded
batches work. A call without them gets the values that the model would have used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import InputError
from lxt_fx.base.torch_internals import pytree, uncompiled
from lxt_fx.base.transformers_internals import without_cache
from lxt_fx.base.user_objects import as_given, holds_tensors, with_given_objects, with_made_objects
from lxt_fx.passes.capture.signature import bound_inputs, named_signature

BATCH, TOKENS = 2, 7
SEED = 0

Fill = Callable[[Tensor], Tensor]
"""Makes an optional input from the input [batch, tokens, ...] that it belongs to."""


def _ones(leaf: Tensor) -> Tensor:
    return torch.ones(leaf.shape[:2], dtype=torch.long, device=leaf.device)


def _zeros(leaf: Tensor) -> Tensor:
    return torch.zeros(leaf.shape[:2], dtype=torch.long, device=leaf.device)


def _positions(leaf: Tensor) -> Tensor:
    return torch.arange(leaf.shape[1], device=leaf.device).expand(leaf.shape[0], -1)


FILLS: dict[str, tuple[str, Fill]] = {
    "attention_mask": ("inputs_embeds", _ones),
    "position_ids": ("inputs_embeds", _positions),
    "token_type_ids": ("inputs_embeds", _zeros),
    "decoder_attention_mask": ("decoder_inputs_embeds", _ones),
}
"""Optional inputs: the input whose shape they follow, and what makes the value of a missing one."""


@dataclass(frozen=True, slots=True)
class Example:
    """The inputs that capture runs on. `kwargs` are tensor inputs by the names of forward's parameters, `optional` names
    those that a call may leave out, and `constants` are other arguments, fixed in the graph. `dynamic_dims` says how many
    leading dims a call may change (`None`: all of them, of images the batch). `positional` names the inputs that the model
    takes by position only. `order` are the names in the order of forward's signature, constants included; empty for made
    inputs."""

    kwargs: dict[str, Any]
    constants: dict[str, Any]
    optional: tuple[str, ...] = ()
    dynamic_dims: int | None = None
    positional: tuple[str, ...] = ()
    order: tuple[str, ...] = ()

    def free_dims(self, tensor: Tensor) -> int:
        """How many leading dims of this input a call may change. Height and width of images are fixed: models compute
        windows, grids and position tables from them, and with free ones torch.export takes minutes for a Swin."""
        if self.dynamic_dims is not None:
            return min(self.dynamic_dims, tensor.dim())
        return 1 if tensor.dim() > 3 and tensor.is_floating_point() else tensor.dim()

    def without(self, names: tuple[str, ...]) -> Example:
        """The same example without these inputs."""
        others = {name: value for name, value in self.kwargs.items() if name not in names}
        return replace(self, kwargs=others, optional=tuple(name for name in self.optional if name not in names))

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

    def call(self, model: nn.Module, without: tuple[str, ...] = ()) -> Any:
        """The model's output on this example, from a fixed random state, without caches. To be called inside
        `torch_state_restored`."""
        args, kwargs = self.arguments(without)
        torch.manual_seed(SEED)
        with without_cache(model), uncompiled(model):
            return with_made_objects(model(*args, **kwargs))


def is_transformers(model: nn.Module) -> bool:
    """Whether the model describes its own inputs: a `transformers` model with a config."""
    return hasattr(model, "config") and hasattr(model, "main_input_name")


def given_example(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Example:
    """The user's example, bound to the names of forward's parameters.

    Raises InputError where the arguments do not fit the signature or contain no tensor.
    """
    if not isinstance(args, tuple):
        raise InputError(
            f"transform: args must be a tuple of example inputs, got {type(args).__name__}; write transform(model, (x,))"
        )
    named, positional = bound_inputs(model, args, _without_idle_switch(model, kwargs))
    tensors = {name: with_given_objects(value) for name, value in named.items() if holds_tensors(value)}
    constants = {name: value for name, value in named.items() if name not in tensors}
    if not tensors:
        raise InputError(
            f"transform: none of the example inputs {sorted(named)} of {type(model).__name__} is a tensor, and relevance "
            "is read at one of them. Give the token ids, embeddings, pixels or features that the model starts from"
        )
    tensors = pytree.tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, tensors)
    return Example(tensors, constants | _switches(model, named), positional=positional, order=tuple(named))


def _without_idle_switch(model: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The inputs without a `use_cache=False` that forward does not take: caches are off in any case."""
    parameters = inspect.signature(model.forward).parameters
    takes = "use_cache" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    idle = not takes and kwargs.get("use_cache") is False
    return {name: value for name, value in kwargs.items() if not (idle and name == "use_cache")}


def made_example(model: nn.Module) -> Example:
    """Example inputs of a transformers model, from its config and forward signature.

    Raises InputError where the model needs an input that cannot be made from its config.
    """
    parameters = named_signature(model).parameters
    main = str(model.main_input_name)
    generator = torch.Generator().manual_seed(SEED)
    kwargs = dict(_main_inputs(model, main, set(parameters), generator))
    optional = []
    for name, (leaf, fill) in FILLS.items():
        if name in parameters and leaf in kwargs:
            kwargs[name] = fill(kwargs[leaf]).clone()
            optional.append(name)
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in kwargs and p.name != "input_ids"
    ]
    if missing:
        raise InputError(
            f"transform: {type(model).__name__} also needs {', '.join(missing)}, which cannot be made from its config; "
            "give an example: transform(model, kwargs={...})"
        )
    is_text = any(name.endswith("inputs_embeds") for name in kwargs)
    return Example(kwargs, _switches(model, kwargs), tuple(optional), 2 if is_text else 1)


def _switches(model: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """`use_cache=False` and `return_dict=True`, where forward has these parameters and the user has not set them."""
    if not is_transformers(model):
        return {}
    parameters = named_signature(model).parameters
    switches: dict[str, Any] = {"use_cache": False, "return_dict": True}
    return {name: value for name, value in switches.items() if name in parameters and name not in given}


def _main_inputs(
    model: nn.Module, main: str, parameters: set[str], generator: torch.Generator
) -> Iterator[tuple[str, Any]]:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    config: Any = model.config
    if main == "input_ids":
        yield from _text_inputs(model, parameters, generator)
        return
    if main not in ("pixel_values", "input_features", "input_values"):
        raise InputError(
            f"transform: the main input of {type(model).__name__} is {main}, which cannot be made from its config; give "
            "an example: transform(model, kwargs={...})"
        )
    shape = {"pixel_values": _image_shape, "input_features": _feature_shape, "input_values": _wave_shape}[main](config)
    yield main, torch.randn(shape, generator=generator).to(device, dtype)
    if "decoder_inputs_embeds" in parameters:
        yield "decoder_inputs_embeds", _embeddings(model, TOKENS - 2, generator)


def _text_inputs(model: nn.Module, parameters: set[str], generator: torch.Generator) -> Iterator[tuple[str, Any]]:
    if "inputs_embeds" not in parameters:
        raise InputError(
            f"transform: {type(model).__name__}.forward takes no inputs_embeds, so there is no float input to read "
            "relevance at; wrap its layers in a module that starts from embeddings and give that with an example"
        )
    yield "inputs_embeds", _embeddings(model, TOKENS, generator)
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False) and "decoder_inputs_embeds" in parameters:
        yield "decoder_inputs_embeds", _embeddings(model, TOKENS - 2, generator)


def _embeddings(model: nn.Module, tokens: int, generator: torch.Generator) -> Tensor:
    """Embeddings [BATCH, tokens, hidden] of random tokens, so that values have the scale that the model expects."""
    embedding: Any = token_embedding(model)
    if embedding is None or not hasattr(embedding, "num_embeddings"):
        raise InputError(
            f"transform: {type(model).__name__} has no token embedding to make inputs_embeds from; give an example: "
            "transform(model, kwargs={'inputs_embeds': ...})"
        )
    ids = torch.randint(
        min(3, embedding.num_embeddings - 1), embedding.num_embeddings, (BATCH, tokens), generator=generator
    )
    with torch.no_grad():
        embedded: Tensor = embedding(ids.to(embedding.weight.device))
    return embedded.detach().clone()


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
    if hasattr(config, "max_source_positions"):
        return BATCH, config.num_mel_bins, 2 * config.max_source_positions
    frames = getattr(config, "max_length", 128)
    return BATCH, frames, getattr(config, "num_mel_bins", getattr(config, "feature_size", 80))


def _wave_shape(config: Any) -> tuple[int, ...]:
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        return BATCH, config.max_length, config.num_mel_bins
    return BATCH, 16000
