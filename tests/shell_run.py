"""The command in this process, on tiny models in folders. Each is loaded once in a dtype, so that a command takes the
capture of an earlier one, as a notebook does. In a process of its own the command runs in test_shell_pipes.py."""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tiny_text import bert, byte_tokenizer, llama, vit, word_tokenizer
from torch import nn
from transformers import ViTImageProcessor

from lxt_fx.shell.loading import Source
from lxt_fx.shell.main import main

load = Source.model

TEXT = "The capital of France is"

CHAT = (
    "{% for m in messages %}<|end|>{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|end|>assistant:{% endif %}"
)


def run(*arguments: str, stdin: bytes | None = None) -> int:
    """The exit code of the command."""
    before = sys.stdin
    try:
        if stdin is not None:
            sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
        with mock.patch.object(Source, "model", _model), pytest.raises(SystemExit) as stopped:
            main(arguments)
    finally:
        sys.stdin = before
    return int(stopped.value.code or 0)


def _model(source: Source, loader: Any, device: torch.device, dtype: str) -> nn.Module:
    """The model of a folder that nobody writes into again; any other is loaded."""
    return (_loaded if source.name.startswith(folder().name) else load)(source, loader, device, dtype)


@cache
def _loaded(source: Source, loader: Any, device: torch.device, dtype: str) -> nn.Module:
    return load(source, loader, device, dtype)


@cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """Where the models lie, until the process ends."""
    return tempfile.TemporaryDirectory(prefix="lxt_fx-shell-")


def _saved(name: str, *made: Any) -> str:
    path = Path(folder().name) / name
    for one in made:
        one.save_pretrained(path)
    return str(path)


@cache
def language_model() -> str:
    """A Llama with a chat template."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    return _saved("llama", tokenizer, llama(len(tokenizer)))


@cache
def classifier() -> str:
    """A BERT of three classes."""
    tokenizer = word_tokenizer()
    return _saved("bert", tokenizer, bert("classifier", len(tokenizer)))


@cache
def image_classifier() -> str:
    """A vision transformer for 8 x 8 pixels."""
    return _saved("vit", vit(), ViTImageProcessor(size={"height": 8, "width": 8}))


MODELS: dict[str, Callable[[], str]] = {"LLAMA": language_model, "BERT": classifier, "VIT": image_classifier}


def filled(arguments: tuple[str, ...], place: Path) -> list[str]:
    """The arguments with the folders of models for their names, and a path for what begins with `HERE/`."""
    return [MODELS[one]() if one in MODELS else one.replace("HERE", str(place)) for one in arguments]
