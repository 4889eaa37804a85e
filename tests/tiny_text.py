"""Tiny tokenizers and random models for the tests of explain and of the command, made in the process: no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

SENTENCES = ["The capital of France is Paris", "The capital of England is London", "Paris, London and Rome: play playing"]

TOWNS = ("Paris", "London", "Rome", "Paris, London and Rome")
LANDS = ("France", "England", "Italy", "Spain in the south of it", "play")
TEXTS = [f"The capital of {land} is {town}" for land in LANDS for town in TOWNS]
"""Texts of several lengths: a small corpus."""


def byte_tokenizer(texts: Sequence[str] = SENTENCES, size: int = 340) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2 and Llama 3 have it: ` Paris` and `Paris` are two tokens, an emoji is four."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>"]
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    made.train_from_iterator([*texts] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", pad_token="<|end|>")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece, as BERT has it."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        SENTENCES * 4, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def sentence_tokenizer(texts: Sequence[str] = SENTENCES, size: int = 380) -> PreTrainedTokenizerFast:
    """BPE with `▁` for a space and bytes for unknown characters, as Llama 2 has it."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    made.train_from_iterator([*texts] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="<unk>")


def llama(vocabulary: int) -> LlamaForCausalLM:
    """A random Llama of one layer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, num_key_value_heads=2, **sizes)).eval()


def llama_of_neurons(vocabulary: int) -> LlamaForCausalLM:
    """The same, and what its neurons write is large enough to change what it says."""
    made = llama(vocabulary)
    with torch.no_grad():
        made.model.layers[0].mlp.down_proj.weight.mul_(100)
    return made


def bert(kind: str, vocabulary: int) -> Any:
    """A random BERT of one layer with a head: `classifier` of three named classes, `tagger`, `masked` or `bare`."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    labels = {0: "bad", 1: "fair", 2: "good"}
    config = BertConfig(vocab_size=vocabulary, id2label=labels, label2id={v: k for k, v in labels.items()}, **sizes)
    classes = {
        "classifier": BertForSequenceClassification,
        "tagger": BertForTokenClassification,
        "masked": BertForMaskedLM,
        "bare": BertModel,
    }
    return classes[kind](config).eval()


def vit() -> ViTForImageClassification:
    """A random vision transformer for 8 x 8 images of three channels and five classes."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=5, **sizes)).eval()
