"""The models and inputs of speed.py, on any transformers since 4.57: LXT's environment has an older one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from speed_grid import MODELS, Cell
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Work:
    """What every method of a cell is given: the model, what it starts from ([batch, tokens, hidden] or pixels), and which
    entry of each row is explained."""

    model: nn.Module
    cell: Cell
    name: str
    example: Tensor
    entries: list[int] = field(default_factory=list)

    def leaf(self) -> Tensor:
        """The input, new, asking for a gradient."""
        return self.example.clone().requires_grad_(True)

    def call(self, net: Any, leaf: Tensor, **others: Any) -> Tensor:
        """[batch, entries]: the logits at the last position, those of a class, or the mean of an encoder's features."""
        if self.name == "inputs_embeds" and self.cell.kind == "causal" and not hasattr(net, "record"):
            others = {"use_cache": False, **others}
        output = net(**{self.name: leaf}, **others)
        if self.cell.kind == "encoder":
            features: Tensor = output.last_hidden_state
            return features.mean(1)
        logits: Tensor = output.logits
        return logits if logits.dim() == 2 else logits[:, -1]

    def value(self, net: Any, leaf: Tensor, **others: Any) -> Tensor:
        """The number that is explained: one entry of each row, summed over the batch. (`amax` would keep all logits until
        the backward, which nobody does who asks for a token.)"""
        numbers = self.call(net, leaf, **others)
        total: Tensor = sum(numbers[row, entry] for row, entry in enumerate(self.entries))  # type: ignore[assignment]
        return total


def work_of(cell: Cell, folder: str, device: str, dtype: str) -> Work:
    """Model and input, the same in every process: weights from `folder`, else random by name. The entries that are
    explained are the largest ones."""
    work = _on_input(cell, folder, device, dtype)
    with torch.no_grad():
        return replace(work, entries=work.call(work.model, work.example).argmax(-1).tolist())


def _on_input(cell: Cell, folder: str, device: str, dtype: str) -> Work:
    model = trained(Path(folder)) if folder else random(cell)
    model = model.get_submodule(MODELS[cell.model].part)
    model = model.to(device=device, dtype=getattr(torch, dtype)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    if cell.kind == "image":
        sizes = model.config
        pixels = torch.randn(cell.batch, sizes.num_channels, sizes.image_size, sizes.image_size, generator=generator)
        return Work(model, cell, "pixel_values", pixels.to(device=device, dtype=getattr(torch, dtype)))
    if model.main_input_name == "input_features":
        sizes = model.config
        mel = torch.randn(cell.batch, sizes.num_mel_bins, 2 * sizes.max_source_positions, generator=generator)
        return Work(model, cell, "input_features", mel.to(device=device, dtype=getattr(torch, dtype)))
    ids = torch.randint(0, model.config.vocab_size, (cell.batch, cell.tokens), generator=generator)
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    with torch.no_grad():
        return Work(model, cell, "inputs_embeds", embedding(ids.to(device)))


def trained(folder: Path) -> nn.Module:
    """A model that examples/models.py wrote, in float32."""
    settings = json.loads(Path(folder, "config.json").read_text())
    config = transformers.AutoConfig.from_pretrained(folder)
    if transformers.__version__.startswith("4."):
        _name_rotations(config, settings.get("rope_parameters", {}))
    kind = getattr(transformers, settings["architectures"][0])
    return kind.from_pretrained(folder, config=config, dtype=torch.float32, local_files_only=True)  # type: ignore[no-any-return]


def _name_rotations(config: Any, rotations: dict[str, Any]) -> None:
    """What transformers 5 writes as `rope_parameters`, as transformers 4 names it."""
    if "rope_theta" in rotations:
        config.rope_theta = rotations["rope_theta"]
    if "full_attention" in rotations:
        config.rope_theta = rotations["full_attention"]["rope_theta"]
        config.rope_local_base_freq = rotations["sliding_attention"]["rope_theta"]


def random(cell: Cell) -> nn.Module:
    """A random Llama, GPT-2, or ViT-B/16 with 1000 classes. Weights are drawn in the order of their names, so that every
    version of transformers gives the same model."""
    sizes = MODELS[cell.model].sizes
    if cell.kind == "image":
        model: nn.Module = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000))
    elif not sizes:
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    else:
        hidden, intermediate, layers, heads, vocabulary = sizes
        config = transformers.LlamaConfig(
            vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=4096, tie_word_embeddings=True,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02, generator=generator)
    return model
