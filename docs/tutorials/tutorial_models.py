"""The models of the tutorials: trained ones if `python examples/models.py fetch NAME` has fetched them, else tiny random
ones, with which every cell runs in a second and no number means anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as token_models

import lxt_fx

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import models  # noqa: E402 - examples/models.py
from convert_dino import DinoSaliency  # noqa: E402

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = " Paris Berlin capital France Germany is of the door green lighthouse keeper island colour question answer man"
CHAT = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def load(name: str) -> tuple[Any, Any]:
    """(model, its tokenizer or processor): `smollm2`, `minilm`, `dino_saliency` or `whisper`. Says which one it is."""
    if (models.cache_folder() / name).is_dir():
        return models.load(name)
    print(f"{name} is not fetched: this is a tiny random model, and its numbers mean nothing")
    torch.manual_seed(0)
    model, processor = TINY[name]()
    return model.eval(), processor


def dictionary() -> tuple[str, lxt_fx.Dictionary]:
    """Features of SmolLM2's residual stream, and the place that they were trained at."""
    folder = models.cache_folder() / "smollm2_dictionary"
    if folder.is_dir():
        return "residual.12", lxt_fx.Dictionary.load(folder)
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, SIZES["hidden_size"]), dim=1)
    return "residual.1", lxt_fx.Dictionary(directions.T.contiguous(), directions, kind="topk", k=8)


def photo(name: str) -> Image.Image:
    """One of the photos that models.py fetches; without them, noise."""
    found = [path for path in models.photos() if path.stem == name] if (models.cache_folder() / "photos").is_dir() else []
    noise = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    return Image.open(found[0]).convert("RGB") if found else Image.fromarray(noise)


def sound(words: str) -> np.ndarray:
    """A spoken clip at 16 kHz, f32[samples]; without the clips, a tone."""
    if (models.cache_folder() / "voices").is_dir():
        return dict(models.voice_clips())[words].numpy()
    return np.sin(np.arange(8000) / 5).astype(np.float32)


def tiny_llama() -> tuple[Any, Any]:
    made = Tokenizer(token_models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    sizes = {"vocab_size": 400, "special_tokens": ["<|end|>"], "initial_alphabet": alphabet}
    trainer = trainers.BpeTrainer(**sizes, show_progress=False)
    made.train_from_iterator([WORDS] * 4, trainer)
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = CHAT
    config = hf.LlamaConfig(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **SIZES)
    return hf.LlamaForCausalLM(config), tokenizer


def tiny_bert() -> tuple[Any, Any]:
    made = Tokenizer(token_models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    made.train_from_iterator([WORDS] * 4, trainer)
    single, ends = "[CLS] $A [SEP]", [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing(single=single, pair=single + " $B:1 [SEP]:1", special_tokens=ends)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=made, **names)
    return hf.BertModel(hf.BertConfig(vocab_size=len(tokenizer), **SIZES)), tokenizer


def tiny_dino() -> tuple[Any, Any]:
    sizes = {"hidden_size": 384, "num_attention_heads": 4, "num_hidden_layers": 1, "mlp_ratio": 1}  # 384: the decoder's
    config = hf.Dinov2Config(**sizes, image_size=56, patch_size=14)
    return DinoSaliency(config), models.picture_processor("dino_saliency", 56)


def tiny_whisper() -> tuple[Any, Any]:
    _, tokenizer = tiny_llama()
    config = hf.WhisperConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=50,
        max_target_positions=32, pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
    )  # fmt: skip
    front_end = hf.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    return hf.WhisperForConditionalGeneration(config), hf.WhisperProcessor(front_end, tokenizer)


TINY = {"smollm2": tiny_llama, "minilm": tiny_bert, "dino_saliency": tiny_dino, "whisper": tiny_whisper}
