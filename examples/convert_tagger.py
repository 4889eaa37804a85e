"""A DistilBERT that tags each token with a grammar edit, out of an ONNX file with int8 weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import DistilBertConfig, PreTrainedTokenizerFast

Arrays = dict[str, "np.ndarray[Any, Any]"]
QUANTIZATION = ("_quantized", "_scale", "_zero_point")


def convert_tagger(source: Path, folder: Path) -> None:
    """Write the tagger of the folder `source` (ONNX, tokenizer, tags) as a transformers model; needs package onnx."""
    import onnx  # the extra `models`

    weights = {name: torch.tensor(array).contiguous() for name, array in read_weights(onnx, source).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tags = json.loads((source / "tag_vocab.json").read_text())["tags"]
    config = DistilBertConfig(vocab_size=28996, num_labels=len(tags))
    config.id2label = dict(enumerate(tags))
    config.label2id = {tag: number for number, tag in enumerate(tags)}
    config.architectures = ["DistilBertForTokenClassification"]
    config.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_file=str(source / "tokenizer.json"),
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
    ).save_pretrained(folder)


def read_weights(onnx: Any, source: Path) -> Arrays:
    """Parameter name -> float32 array.

    Biases and norms keep their names in the file. A matrix lost its name when it was quantized; the node that uses it
    is still called after the module, as in `/distilbert/transformer/layer.0/attention/q_lin/MatMul`.
    """
    graph = onnx.load(source / "tagger.onnx").graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {
        name: array
        for name, array in stored.items()
        if name.startswith(("distilbert.", "classifier.")) and not name.endswith(QUANTIZATION)
    }
    matrices = dequantized(graph, stored)
    for node in graph.node:
        parameter = node.name[1:].rsplit("/", 1)[0].replace("/", ".") + ".weight"
        if node.op_type == "MatMul" and node.input[1] in matrices:
            weights[parameter] = matrices[node.input[1]].T
        if node.op_type == "Gather" and node.input[0] in matrices:
            weights[parameter] = matrices[node.input[0]]
    return weights


def dequantized(graph: Any, stored: Arrays) -> Arrays:
    """(q - zero_point) * scale for each stored int8 matrix, under the name of the value that its node puts out."""
    matrices = {}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored:
            continue
        whole, scale, zero = (stored[name].astype(np.float32) for name in node.input)
        if scale.ndim:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            along_axis = [-1 if dim == axis else 1 for dim in range(whole.ndim)]
            scale, zero = scale.reshape(along_axis), zero.reshape(along_axis)
        matrices[node.output[0]] = (whole - zero) * scale
    return matrices
