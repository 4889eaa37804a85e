"""What is known of a model before it is called: the names of its inputs, the sizes that it takes, its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import InputError
from lxt_fx.base.torch_internals import io_of, pytree
from lxt_fx.compiler.explained import Explained
from lxt_fx.passes.capture.example import token_embedding
from lxt_fx.passes.capture.offloaded import input_device
from lxt_fx.passes.capture.settings import is_transformers
from lxt_fx.passes.capture.signature import named_signature

SOUNDS = ("input_features", "input_values")
PICTURES = ("pixel_values",)


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """A model, the names of its inputs, and the device and floating-point dtype that they must have. `function` is the
    public function that was called; errors name it. `first_is_picture` says that the first input takes pictures."""

    model: nn.Module
    function: str
    model_class: str
    names: tuple[str, ...]
    config: Any
    device: torch.device
    dtype: torch.dtype
    first_is_picture: bool = False

    def takes(self, name: str) -> bool:
        """Whether the model has an input of this name."""
        return name in self.names

    def needs(self, *names: str) -> bool:
        """Whether the model cannot be called without one of these inputs. An explained module may capture a call without
        them."""
        if isinstance(self.model, Explained):
            return False
        parameters = named_signature(self.model).parameters
        return any(name in parameters and parameters[name].default is parameters[name].empty for name in names)

    @property
    def reads_text(self) -> bool:
        """Whether it takes tokens, or embeddings of them."""
        return self.takes("input_ids") or self.takes("inputs_embeds")

    @property
    def picture(self) -> str | None:
        """The input that takes pictures. A model that is not of transformers takes them as its first input, if it has a
        layer for pictures."""
        if (named := next(filter(self.takes, PICTURES), None)) is not None:
            return named
        if isinstance(self.model, Explained):
            sizes = self.model.record.sizes
            return next((leaf for leaf in self.model.record.leaves if len(sizes.get(leaf, ())) == 4), None)
        if not self.names or self.of_transformers:
            return None
        convolves = any(isinstance(module, nn.Conv2d) for module in self.model.modules())
        return self.names[0] if self.first_is_picture or convolves and not self.reads_text else None

    @property
    def films(self) -> bool:
        """Whether what it takes as pictures is films, [batch, frames, channels, height, width]."""
        return isinstance(getattr(self.config, "num_frames", None), int) and not self.reads_text

    @property
    def of_transformers(self) -> bool:
        """Whether the model is of transformers; an explained module counts as such, because its inputs are known."""
        return isinstance(self.model, Explained) or is_transformers(self.model)

    @property
    def sound(self) -> str | None:
        """The input that takes sounds."""
        return next(filter(self.takes, SOUNDS), None)

    @property
    def decodes(self) -> bool:
        """Whether there is a decoder with a text of its own."""
        own = self.takes("decoder_input_ids") or self.takes("decoder_inputs_embeds")
        return own and bool(getattr(self.config, "is_encoder_decoder", True))

    @property
    def compares(self) -> bool:
        """Whether it scores each picture with each text of a call, as CLIP does."""
        if isinstance(self.model, Explained):
            spec = io_of(self.model.graph).out_spec
            output = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
            return isinstance(output, Mapping) and "logits_per_image" in output
        return self.takes("return_loss") and self.reads_text and self.picture is not None and not self.decodes

    @property
    def in_training(self) -> bool:
        """Whether the model is in training mode, in which `transform` refuses it."""
        return self.model.training and not isinstance(self.model, Explained)

    @property
    def text_config(self) -> Any:
        """The part of the config that is about the text."""
        get = getattr(self.config, "get_text_config", None)
        return get() if callable(get) else self.config

    def vocabulary(self) -> int | None:
        """How many tokens the model can look up; None if it is not known."""
        embedding = (self.model._embedding or (None,))[0] if isinstance(self.model, Explained) else None
        if not isinstance(self.model, Explained):
            embedding = token_embedding(self.model)
        if isinstance(embedding, nn.Embedding):
            return embedding.num_embeddings
        size = getattr(self.text_config, "vocab_size", None)
        return size if isinstance(size, int) else None

    def longest(self) -> int | None:
        """The most tokens that the model has positions for; None if it has no limit, or none that it names."""
        config = self.text_config
        most = getattr(config, "max_position_embeddings", None)
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
        if isinstance(rope, Mapping) and "dynamic" in (rope.get("rope_type"), rope.get("type")):
            return None
        for name, module in self.model.named_modules():
            table = name.rpartition(".")[2] in ("position_embeddings", "embed_positions", "wpe")
            if table and isinstance(module, nn.Embedding) and module.padding_idx is not None and "decoder" not in name:
                return module.num_embeddings - module.padding_idx - 1
        return most if isinstance(most, int) and most > 0 else None

    def placeholders(self) -> frozenset[int]:
        """The ids of the tokens in whose place pictures, videos and sounds are put."""
        return placeholders_of(self.config)

    def on_device(self, value: Any) -> Any:
        """A tensor of the person as the model takes it: a copy on its device, floats in its dtype."""
        if not isinstance(value, Tensor):
            return value
        dtype = self.dtype if value.is_floating_point() else value.dtype
        return value.detach().to(self.device, dtype, copy=True)


def placeholders_of(config: Any) -> frozenset[int]:
    """The ids of the tokens in whose place pictures, videos and sounds are put, as a config names them."""
    names = (f"{kind}_token_{end}" for kind in ("image", "video", "audio") for end in ("id", "index"))
    found = (getattr(config, name, None) for name in names)
    return frozenset(token for token in found if isinstance(token, int))


def facts_of(model: nn.Module, function: str) -> Facts:
    """What is known of this model."""
    if isinstance(model, Explained):
        own = (*model.record.called_with, *model.record.inputs)
        others = () if model._other_calls is None else sorted(model._other_calls.takes)
        names, model_class = tuple(dict.fromkeys((*own, *others))), model.record.model_class
    else:
        parameters = named_signature(model).parameters.values()
        names = tuple(f"{each.name}_0" if each.kind is each.VAR_POSITIONAL else each.name for each in parameters)
        model_class = type(model).__name__
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    device = model.device if isinstance(model, Explained) else input_device(model)
    dtype = torch.get_default_dtype() if first is None else first.dtype
    return Facts(model, function, model_class, names, getattr(model, "config", None), device, dtype)


def check_finite(inputs: Mapping[str, Any], function: str) -> None:
    """Raises InputError for an input with a NaN or infinite number."""
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point() and "mask" not in name:
            bad = ~torch.isfinite(value)
            if bool(bad.any()):
                where = [int(index) for index in bad.nonzero()[0]]
                raise InputError(
                    f"{function}: {name} is {float(value[tuple(where)])} at {where} and at {int(bad.sum()) - 1} more "
                    "places; relevance of it would be no number. Look at what made it"
                )
