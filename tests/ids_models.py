"""Small models that read their token ids in many ways, each with the inputs of a call: padded texts beside full ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tiny
import torch
import transformers as hf
from torch import Tensor, nn

IDS = torch.tensor([[5, 9, 17, 23, 11, 3], [6, 7, 8, 0, 0, 0], [0, 0, 12, 7, 30, 4]])
TEXT = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}
TARGET_IDS = torch.tensor([[2, 7, 8, 9], [2, 4, 6, 5], [2, 9, 9, 11]])
BOTH = {**TEXT, "decoder_input_ids": TARGET_IDS}

SEQ2SEQ = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3, "decoder_start_token_id": 2,
}  # fmt: skip

Called = tuple[nn.Module, dict[str, Any]]


def made(kind: Any, config: Any) -> nn.Module:
    """The model with seeded parameters, so that no bias is 0."""
    return tiny._made(kind, config, "sdpa")


def llama_classifier() -> Called:
    """Pools the last token that is not padding, which it finds in the ids."""
    config = hf.LlamaConfig(**tiny.SIZES, num_key_value_heads=2, pad_token_id=0, num_labels=3)
    return made(hf.LlamaForSequenceClassification, config), dict(TEXT)


def gpt2_classifier() -> Called:
    """The same, with position embeddings."""
    config = hf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, pad_token_id=0, num_labels=3)
    return made(hf.GPT2ForSequenceClassification, config), dict(TEXT)


def roberta() -> Called:
    """Counts positions from the padding in the ids."""
    config = hf.RobertaConfig(**tiny.SIZES, max_position_embeddings=64, pad_token_id=0)
    return made(hf.RobertaForSequenceClassification, config), dict(TEXT)


def opt() -> Called:
    """Counts positions from the mask."""
    config = hf.OPTConfig(
        vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    return made(hf.OPTForCausalLM, config), dict(TEXT)


def marian() -> Called:
    """Scales what it looks up, outside of the embedding."""
    return made(hf.MarianMTModel, hf.MarianConfig(**SEQ2SEQ, scale_embedding=True)), dict(BOTH)


def bart_classifier() -> Called:
    """Makes the decoder's ids of the encoder's: one text is looked up twice. Pools at the end of text, one in each row."""
    model = made(hf.BartForSequenceClassification, hf.BartConfig(**SEQ2SEQ, num_labels=3))
    ids = torch.tensor([[5, 9, 17, 23, 11, 3], [6, 7, 3, 0, 0, 0]])
    return model, {"input_ids": ids, "attention_mask": (ids != 0).long()}


def t5() -> Called:
    """An encoder and a decoder with one table."""
    config = hf.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return made(hf.T5ForConditionalGeneration, config), dict(BOTH)


def gemma3n() -> Called:
    """Has embeddings of its own in each layer."""
    config = hf.Gemma3nTextConfig(
        **tiny.SIZES, num_key_value_heads=2, head_dim=8, vocab_size_per_layer_input=64, hidden_size_per_layer_input=8,
        num_kv_shared_layers=0, laurel_rank=4, layer_types=["sliding_attention", "full_attention"], sliding_window=4,
        activation_sparsity_pattern=[0.0, 0.0], altup_num_inputs=2, pad_token_id=0, use_cache=False,
    )  # fmt: skip
    return made(hf.Gemma3nForCausalLM, config), dict(TEXT)


def clip() -> Called:
    """A text and an image."""
    sizes = {name: size for name, size in tiny.SIZES.items() if name != "vocab_size"}
    text = {**tiny.SIZES, "max_position_embeddings": 20, "eos_token_id": 63, "bos_token_id": 1, "pad_token_id": 0}
    config = hf.CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8}, projection_dim=16)
    ids = torch.tensor([[1, 5, 6, 63], [1, 9, 63, 0]])
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return made(hf.CLIPModel, config), {"input_ids": ids, "pixel_values": images, "attention_mask": (ids != 0).long()}


class Indexed(nn.Module):
    """Tokens looked up by any op: an index, `index_select`, one-hot vectors times the table, a scaled embedding; in a table
    whose rows are shortened first, or under no_grad."""

    def __init__(self, by: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.by, self.table, self.head = by, nn.Parameter(torch.randn(31, 8)), nn.Linear(8, 2)
        self.places = nn.Embedding(9, 8)

    def looked_up(self, tokens: Tensor) -> Tensor:
        if self.by == "index":
            return self.table[tokens, :]
        if self.by == "index_select":
            return self.table.index_select(0, tokens.view(-1)).view(*tokens.shape, 8)
        if self.by == "padded":  # to blocks of 4
            return nn.functional.embedding(nn.functional.pad(tokens, (0, -tokens.shape[-1] % 4)), self.table)
        if self.by == "max_norm":
            return nn.functional.embedding(tokens, self.table, max_norm=1.0)
        if self.by == "frozen":
            with torch.no_grad():
                return nn.functional.embedding(tokens, self.table)
        if self.by == "bag":
            return nn.functional.embedding_bag(tokens, self.table, mode="sum", padding_idx=0)[:, None]
        if self.by == "one_hot":
            return nn.functional.one_hot(tokens, 31).to(self.table) @ self.table
        if self.by == "equal":
            return (tokens[..., None] == torch.arange(31)).to(self.table) @ self.table
        return nn.functional.embedding(tokens, self.table) * 3.0

    def forward(self, tokens: Tensor) -> Tensor:
        places = self.places(torch.arange(tokens.shape[-1], device=tokens.device))
        hidden = torch.tanh(self.looked_up(tokens)[:, : tokens.shape[-1]] + places)
        return self.head((hidden * (tokens != 0)[..., None]).mean(-2))


class Sentences(Indexed):
    """Ids [batch, sentences, tokens] inside of a dict, and a mask beside them."""

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        hidden = torch.tanh(self.looked_up(features["ids"])) * features["present"][..., None]
        return self.head(hidden.mean(-2)).mean(1)


class TextAndNumbers(nn.Module):
    """A text beside numbers and a category."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.numbers, self.head = tiny.bert().bert, nn.Linear(3, 8), nn.Linear(44, 2)
        self.kinds = nn.Embedding(5, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, features: Tensor, category: Tensor) -> Tensor:
        hidden = self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        return self.head(torch.cat([hidden, self.numbers(features).relu(), self.kinds(category)], -1))


def text_and_numbers() -> Called:
    numbers = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    return TextAndNumbers().eval(), {**TEXT, "features": numbers, "category": torch.tensor([1, 4, 2])}


def sentences() -> Called:
    ids = IDS.view(3, 2, 3)
    return Sentences("index").eval(), {"features": {"ids": ids, "present": (ids != 0).float()}}


def _indexed(by: str) -> Callable[[], Called]:
    return lambda: (Indexed(by).eval(), {"tokens": IDS})


OPS = ("index", "index_select", "one_hot", "equal", "scaled", "padded", "max_norm", "frozen", "bag")

MODELS: dict[str, Callable[[], Called]] = {
    "llama classifier": llama_classifier, "gpt2 classifier": gpt2_classifier, "roberta": roberta, "opt": opt,
    "marian": marian, "bart classifier": bart_classifier, "t5": t5, "gemma3n": gemma3n, "clip": clip,
    "text and numbers": text_and_numbers, "sentences": sentences,
    **{by: _indexed(by) for by in OPS},
}  # fmt: skip

LEAVES = {
    "marian": ("inputs_embeds", "decoder_inputs_embeds"),
    "t5": ("inputs_embeds", "decoder_inputs_embeds"),
    "bart classifier": ("inputs_embeds", "inputs_embeds_embed_tokens"),
    "gemma3n": ("inputs_embeds", "inputs_embeds_embed_tokens_per_layer"),
    "clip": ("inputs_embeds", "pixel_values"),
    "text and numbers": ("inputs_embeds", "features", "category_embeds"),
    "sentences": ("features_ids_embeds", "features_present"),
    **dict.fromkeys(OPS, ("tokens_embeds",)),
}
"""The leaves of each model; `inputs_embeds` alone for the others."""
