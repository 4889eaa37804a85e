"""All uses of the private or unstable API of transformers in lxt_fx: one small function for each use. No function here
imports transformers unless one of its models or tokenizers is needed."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NoReturn, Protocol

import torch
from torch import nn

from lxt_fx.base.errors import UnsupportedVersionError
from lxt_fx.version import TESTED

_EXPERTS = "_experts_implementation_internal"


def _unsupported(missing: str, purpose: str) -> NoReturn:
    version = sys.modules["transformers"].__version__
    raise UnsupportedVersionError(
        f"transformers {version} has no {missing}, which lxt_fx needs {purpose}; install transformers "
        f"{TESTED['transformers']} (those were tested) or a newer lxt_fx"
    )


@contextmanager
def traceable_experts(model: nn.Module) -> Iterator[None]:
    """Inside the block, models whose experts are set to `eager` use `batched_mm`, which computes the same sums as one
    product. Afterwards the setting is restored. `eager` loops over the experts that were hit, which is data-dependent.

    The private field is written because the public setter would also write into the configs of sub-models. If the field
    were gone without this check, expert models would be traced on the experts of one example. transformers 4 has one
    implementation only, and no field.
    """
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}.values()
    for config in configs:
        if _is_new_config(config) and not hasattr(config, _EXPERTS):
            _unsupported(f"{type(config).__name__}.{_EXPERTS}", "to trace the experts of a model as one product")
    eager = [config for config in configs if getattr(config, _EXPERTS, None) == "eager"]
    try:
        for config in eager:
            setattr(config, _EXPERTS, "batched_mm")
        yield
    finally:
        for config in eager:
            setattr(config, _EXPERTS, "eager")


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Inside the block, no config of the model or of its parts asks for a cache. Many forwards name no `use_cache` and read
    it from the config; a graph cannot return a cache. Afterwards the settings are restored, and so is `problem_type`, which
    a classifier that is called with labels writes into its config."""
    todo = [config for module in model.modules() if (config := getattr(module, "config", None)) is not None]
    configs: dict[int, Any] = {}
    while todo:
        if id(config := todo.pop()) not in configs:
            configs[id(config)] = config
            todo += [part for part in getattr(config, "__dict__", {}).values() if hasattr(part, "model_type")]
    cached = [config for config in configs.values() if getattr(config, "use_cache", None) is True]
    problems = [(config, config.problem_type) for config in configs.values() if hasattr(config, "problem_type")]
    try:
        for config in cached:
            config.use_cache = False
        yield
    finally:
        for config in cached:
            config.use_cache = True
        for config, problem in problems:
            config.problem_type = problem


@contextmanager
def flex_masks_read_padding(model: nn.Module) -> Iterator[bool]:
    """Inside the block, a model that is set to flex_attention makes its masks of the padding in any case; gives whether it
    is one. In some releases it looks whether there is any padding, which is data-dependent. Where that function is gone,
    such a model may be captured for the sizes of the example only."""
    configs = (getattr(module, "config", None) for module in model.modules())
    flex = any(getattr(config, "_attn_implementation", None) == "flex_attention" for config in configs)
    masking: Any = sys.modules.get("transformers.masking_utils") if flex else None
    own = getattr(masking, "fast_all", None)
    try:
        if own is not None:
            masking.fast_all = lambda tensor: False
        yield flex
    finally:
        if own is not None:
            masking.fast_all = own


def _is_new_config(config: Any) -> bool:
    """Whether this is a config of transformers 5 or later."""
    transformers: Any = sys.modules.get("transformers")
    if transformers is None or int(transformers.__version__.split(".")[0]) < 5:
        return False
    return isinstance(config, transformers.PreTrainedConfig)


_MAYBE_AUTOCAST = "maybe_autocast"


@contextmanager
def visible_autocast() -> Iterator[None]:
    """Inside the block, the places where models of transformers 5 switch autocast off (routers, some attentions) do so
    even where no autocast is on. Otherwise the graph would not know of them, and a call under the caller's autocast would
    compute them in half precision. transformers 4 always does so."""
    named = [module for name, module in list(sys.modules.items()) if name.startswith("transformers.") and module]
    own = [(vars(module), vars(module)[_MAYBE_AUTOCAST]) for module in named if _MAYBE_AUTOCAST in vars(module)]

    def always(device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, **settings: Any) -> Any:
        if device_type == "meta":
            return nullcontext()
        return torch.autocast(device_type, dtype=dtype, enabled=enabled, **settings)

    try:
        for names, _ in own:
            names[_MAYBE_AUTOCAST] = always
        yield
    finally:
        for names, original in own:
            names[_MAYBE_AUTOCAST] = original


@cache
def register_ops() -> None:
    """Makes sure that `torch.ops.transformers` has the expert matmul, which transformers registers when one of its private
    modules is imported. A model loaded from a file may run before that."""
    try:
        importlib.import_module("transformers.integrations.moe")
    except ModuleNotFoundError as error:
        raise UnsupportedVersionError(
            f"this graph calls the expert matmul of transformers, which is not installed ({error}); install transformers "
            f"{TESTED['transformers']}"
        ) from error
    if not hasattr(torch.ops.transformers, "grouped_mm_fallback"):
        _unsupported("op grouped_mm_fallback", "for expert matmuls in a dtype that torch's own lacks")


_AUTO_CLASSES = {
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "AutoModelForCausalLM",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "AutoModelForSequenceClassification",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": "AutoModelForMaskedLM",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "AutoModelForTokenClassification",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": "AutoModelForImageClassification",
}


def auto_classes() -> tuple[tuple[frozenset[str], Any], ...]:
    """For each kind of model that can be explained, the names of its architectures and the auto class that loads them. The
    public mapping of transformers imports every model class when it is read."""
    import transformers
    from transformers.models.auto import modeling_auto

    found = []
    for mapping, auto in _AUTO_CLASSES.items():
        names = getattr(modeling_auto, mapping, None)
        if names is None:
            _unsupported(mapping, "to find the class that loads a model")
        found.append((_flat(names), getattr(transformers, auto)))
    return tuple(found)


def _flat(names: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(each for value in names.values() for each in ([value] if isinstance(value, str) else value))


class _Decodes(Protocol):
    def decode(self, token_ids: list[int], *, clean_up_tokenization_spaces: bool) -> str: ...


def exact_text(tokenizer: _Decodes, ids: Sequence[int]) -> str:
    """The text of the tokens with all of its spaces. By default some tokenizers "clean up" the spaces before full stops and
    commas, so that the tokens would not add up to the text."""
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def gemma_weight(layer: nn.Module) -> torch.Tensor:
    """The unpacked weight of a `QuantizedLinear` of transformers (Gemma in 2, 4 or 8 bits). No public function gives it."""
    unpack: Any = getattr(layer, "_dequantize_weights", None)
    if unpack is None:
        _unsupported(f"{type(layer).__name__}._dequantize_weights", "to pass relevance by its packed weights")
    found: torch.Tensor = unpack()
    return found


def recorded_outputs() -> dict[str, Any] | None:
    """The dict in which every model of transformers that was made in this process notes what it can return, by the text of
    its class. A forward reads the entry of its own class. None where transformers has no such dict or is not imported."""
    for name in ("transformers.utils.output_capturing", "transformers.utils.generic"):
        found = getattr(sys.modules.get(name), "_CAN_RECORD_REGISTRY", None)
        if isinstance(found, dict):
            return found
    return None


@dataclass(frozen=True, slots=True)
class StoredPart:
    """Tensors of a model, `names`, that a checkpoint has as the tensors `keys`: one under another name, several that are
    merged (the matrices of all experts), or one that is divided."""

    keys: tuple[str, ...]
    names: tuple[str, ...]
    _converter: Any = None
    _patterns: tuple[str, ...] = ()

    def read(self, tensor: Callable[[str], torch.Tensor], model: nn.Module | None) -> dict[str, torch.Tensor]:
        """The tensors by name in the model, made of those that `tensor` reads, as `from_pretrained` makes them."""
        if self._converter is None:
            return dict.fromkeys(self.names, tensor(self.keys[0]))
        converter = copy.deepcopy(self._converter)  # it collects what it converts
        for key, pattern in zip(self.keys, self._patterns, strict=True):
            converter.add_tensor(self.names[0], key, pattern, partial(tensor, key))
        found = converter.convert(self.names[0], model=model, config=getattr(model, "config", None))
        return {name: each[0] if isinstance(each, list) else each for name, each in found.items()}


def stored_parts(model: nn.Module, keys: Sequence[str]) -> list[StoredPart]:
    """What a checkpoint with these tensors has of a model, as `from_pretrained` renames, merges and divides them.

    `get_model_conversion_mapping`, `rename_source_key` and the converters are those of transformers 5. An earlier one
    renames nothing but a prefix, and without them checkpoints with a tensor for each expert would be refused.
    """
    plain = [StoredPart((key,), (key,)) for key in keys]
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, dot_natural_key, rename_source_key
    except ImportError:
        return plain
    if not is_of_transformers(model):
        return plain
    transforms = get_model_conversion_mapping(model)  # type: ignore[arg-type]
    renaming = [each for each in transforms if isinstance(each, WeightRenaming)]
    converting = [each for each in transforms if not isinstance(each, WeightRenaming)]
    by_pattern = {pattern: each for each in converting for pattern in each.source_patterns}
    state, found = model.state_dict(), dict[str, list[tuple[str, str | None]]]()
    for key in sorted(keys, key=dot_natural_key):  # experts in the order of their numbers
        name, pattern = rename_source_key(key, renaming, converting, model.base_model_prefix, state)  # type: ignore[arg-type]
        if key in state and name not in state:
            name, pattern = key, None
        found.setdefault(name, []).append((key, pattern))
    parts = []
    for name, sources in found.items():
        own, patterns = zip(*sources, strict=True)
        if patterns[0] is None:
            parts += [StoredPart((key,), (name,)) for key in own]
            continue
        converter = by_pattern[patterns[0]]
        first, *others = converter.target_patterns
        parts.append(StoredPart(own, (name, *(name.replace(first, each, 1) for each in others)), converter, patterns))
    return parts


def is_of_transformers(model: nn.Module) -> bool:
    """Whether the class of a model is one of transformers, which makes a model of a config alone. `_from_config` is what
    `AutoModel.from_config` calls; without it buffers would have to be given by hand."""
    return hasattr(model, "_from_config")


def ignored_names(model: nn.Module) -> tuple[str, ...]:
    """Patterns of names in checkpoints that `from_pretrained` passes over for this class. Without the list, checkpoints of
    older releases would be refused for buffers that the model makes itself."""
    return tuple(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
