"""Language models out of GGUF files (4-bit weights), written as float32 safetensors that load in half a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of the file `gguf` into `folder`; needs the packages gguf and accelerate."""
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": gguf.parent,
        "gguf_file": gguf.name,
        "local_files_only": True,
    }
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    forget_quantization(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def forget_quantization(model: Any) -> None:
    """The weights are plain float32 by now; `save_pretrained` refuses a model that says it is quantized."""
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.hf_quantizer = None
    model.quantization_method = None
    if hasattr(model, "is_quantized"):
        del model.is_quantized
