"""Tiny random models of most transformers architectures, rebuilt from data: classes, config, inputs.

`public.jsonl.xz` holds one JSON object a line. Fields: `entry` (the name of the case), `dir` (the model's directory in
transformers), `family`, `model_class` and `module`, `config_class`, `config_module` and `config`; `attn`, `sub_attn`
(attention implementation), `inputs` (tensors by name: `data`, `fill`, `seed` and `kind`, `embed` for the model's own
embedding of ids, or a `list` or `dict` of those), `const` (other arguments), `leaf` (float inputs that reach the output),
`leaf_param` (where there are none), `seed` and `gain` (of the parameters), `random_forward`, `survey`.
"""

from __future__ import annotations

import importlib
import json
import lzma
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

PUBLIC = Path(__file__).with_name("public.jsonl.xz")
MAIN_OUTPUTS = (
    "logits", "logits_per_image", "last_hidden_state", "pred_boxes", "prediction_outputs", "reconstruction",
    "predicted_depth",
)  # fmt: skip

Case = Mapping[str, Any]


@cache
def cases() -> dict[str, Case]:
    """All cases by entry."""
    with lzma.open(PUBLIC, "rt", encoding="utf-8") as file:
        found = [json.loads(line) for line in file]
    return {case["entry"]: case for case in found}


def build(case: Case) -> tuple[nn.Module, dict[str, Any]]:
    """The model in float32 and eval mode with seeded parameters, and the arguments of its forward.

    Draws from torch's generator, as the classes themselves do. Raises what the classes raise.
    """
    torch.manual_seed(case["seed"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = _named(case["module"], case["model_class"])(_config(case))
    model = model.eval().float()
    fill(model, case["seed"] + 1, case["gain"])
    inputs = {name: _input(spec, model) for name, spec in case["inputs"].items()}
    _calibrate(model, inputs | case["const"], case["seed"] + 3)
    torch.manual_seed(case["seed"] + 2)
    return model, inputs | case["const"]


def _named(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _config(case: Case) -> Any:
    config = _named(case["config_module"], case["config_class"]).from_dict(_numbers(case["config"]))
    if case["attn"] == "eager" and set(case["sub_attn"].values()) <= {"eager"}:
        config._attn_implementation = "eager"
    return config


def _numbers(value: Any) -> Any:
    """A copy in which {"__float__": "Infinity"} is a number again."""
    if isinstance(value, dict):
        return float(value["__float__"]) if set(value) == {"__float__"} else {k: _numbers(v) for k, v in value.items()}
    return [_numbers(item) for item in value] if isinstance(value, list) else value


def _input(spec: Case, model: nn.Module) -> Any:
    if "list" in spec:
        items = [_input(item, model) for item in spec["list"]]
        return tuple(items) if spec.get("tuple") else items
    if "dict" in spec:
        return {name: _input(item, model) for name, item in spec["dict"].items()}
    if "embed" in spec:
        return model.get_input_embeddings()(_input(spec["embed"], model)).detach()  # type: ignore[operator]
    dtype, shape = getattr(torch, spec["dtype"]), spec["shape"]
    if "data" in spec:
        return torch.tensor(spec["data"], dtype=dtype).reshape(shape).clone()  # a view may not export
    if "fill" in spec:
        return torch.full(shape, spec["fill"], dtype=dtype)
    draw = {"randn": torch.randn, "rand": torch.rand}[spec["kind"]]
    drawn: Tensor = draw(shape, generator=torch.Generator().manual_seed(spec["seed"]))
    return (drawn * spec.get("scale", 1.0)).to(dtype)


@torch.no_grad()
def fill(model: nn.Module, seed: int, gain: float) -> None:
    """Matrices are drawn with a spread that keeps signals alive, vectors and constants get noise beside their value,
    batch norms other statistics than 0 and 1, and codebooks that are buffers (of Mimi) other entries than 0."""
    generator = torch.Generator().manual_seed(seed)
    kernels = {
        id(p)
        for module in model.modules()
        if isinstance(module, nn.modules.conv._ConvNd)
        for p in module.parameters(recurse=False)
    }
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.numel() == 0:
            continue
        drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
        old = torch.nan_to_num(parameter, 0.0, 0.0, 0.0)
        first = old.reshape(-1)[0]
        if parameter.dim() < 2 or (bool((old == first).all()) and first != 0) or name.endswith(("weight_g", "original0")):
            parameter.copy_(old.clamp(-10, 10) + 0.1 * drawn)
        else:
            fan = parameter[0].numel() if id(parameter) in kernels else parameter.shape[-1]
            parameter.copy_(gain * min(0.3, max(0.05, 1 / math.sqrt(max(1, fan)))) * drawn)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator).to(buffer))
        elif name.endswith("running_var"):
            buffer.mul_(1 + 0.1 * torch.rand(buffer.shape, generator=generator).to(buffer))
        elif name.endswith("codebook.embed_sum"):
            buffer.add_(0.3 * torch.randn(buffer.shape, generator=generator).to(buffer))


@torch.no_grad()
def _calibrate(model: nn.Module, inputs: Mapping[str, Any], seed: int) -> None:
    """Activations that are quantised (I-BERT) get the ranges that they have on these inputs: outside of its range one is a
    constant, and the model's own gradient was NaN. The model finds them while it trains."""
    if any(name.endswith("x_max") for name, _ in model.named_buffers()):
        torch.manual_seed(seed)
        for _ in range(3):
            model.train()(**inputs)
        model.eval()


def to_double(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with every float tensor in float64."""
    return pytree.tree_map(
        lambda x: x.double() if isinstance(x, Tensor) and x.dtype is torch.float32 else x, dict(inputs)
    )


def main_outputs(output: Any) -> list[Tensor]:
    """The float tensors of an output that one would explain: logits, hidden states, boxes. A single number beside them is
    none (CLIP returns its logit scale, SigLIP a bias)."""
    floats = [(path, x) for path, x in _leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]
    floats = [(path, x) for path, x in floats if x.dim() > 0] or floats
    floats = [(path, x) for path, x in floats if "past_key_values" not in path and "loss" not in path]
    main = [x for name in MAIN_OUTPUTS for path, x in floats if path == f".{name}"]
    return main or [x for _, x in floats if x.requires_grad][:3] or [x for _, x in floats][:3]


def _leaves(output: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values and their paths (older transformers register their outputs with torch's pytree without keys)."""
    if isinstance(output, (Mapping, list, tuple)):
        pairs = output.items() if isinstance(output, Mapping) else enumerate(output)
        for key, value in pairs:
            yield from _leaves(value, f"{path}.{key}")
    elif is_dataclass(output) and not isinstance(output, type):
        for item in fields(output):
            yield from _leaves(getattr(output, item.name), f"{path}.{item.name}")
    else:
        yield path, output


def weights(output: Any) -> list[tuple[Tensor, Tensor]]:
    """The main outputs, each with fixed random weights of its shape, 0 for what is masked."""
    generator = torch.Generator().manual_seed(7)
    pairs = []
    for found in main_outputs(output):
        drawn = torch.randn(found.shape, generator=generator).to(found)
        pairs.append((found, torch.where(found.detach().abs() < 1e30, drawn, 0)))
    return pairs


def projection(output: Any) -> Tensor:
    """A scalar: the weighted sum of the main outputs."""
    total = torch.zeros((), dtype=torch.float64)
    for found, weight in weights(output):
        total = total + torch.where(weight == 0, 0, found * weight).sum()
    return total
