"""Tiny models with each kind of head, the inputs of a padded batch, and input * gradient by a call of the model by hand.

The reference shares nothing with the package: each example is called alone and without padding, its embedding modules give
leaves (a hook), and autograd differentiates a number that the case computes from the model's own output."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import ids_models
import tiny
import tiny_text
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.utils import ModelOutput

import lxt_fx
from lxt_fx import Target
from lxt_fx.inputs.given import Example, Given
from lxt_fx.inputs.read import read_inputs
from lxt_fx.results.part import Part
from lxt_fx.results.readings import ImageReading, NumbersReading, SoundReading, TextReading

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass(frozen=True, slots=True, eq=False)
class TextAt:
    """A text of a batch: its columns without padding."""

    tokenizer: Any
    ids: tuple[int, ...]
    columns: tuple[int, ...]
    within: int
    leaf: str = "input_ids"
    name: str = "text"

    def part(self, relevance: Tensor) -> Part:
        """[targets, columns, units]."""
        units = relevance[:, list(self.columns)]
        tokens = tuple(str(token) for token in self.tokenizer.convert_ids_to_tokens(list(self.ids)))
        reading = TextReading(tokens, self.ids, (False,) * len(tokens), (0,) * len(tokens))
        return Part(self.name, ("target", "position"), units.sum(-1), reading, units)


@dataclass(frozen=True, slots=True, eq=False)
class ImageAt:
    """A picture of a batch, [channels, height, width]."""

    within: int
    leaf: str = "pixel_values"
    name: str = "image"

    def part(self, relevance: Tensor) -> Part:
        """[targets, channels, height, width]."""
        units = relevance.permute(0, 2, 3, 1)
        reading = ImageReading(torch.zeros(*units.shape[1:3], 3, dtype=torch.uint8))
        return Part(self.name, ("target", "row", "column"), units.sum(-1), reading, units)


@dataclass(frozen=True, slots=True, eq=False)
class SoundAt:
    """A sound of a batch: [samples], or [bins, frames]; `count` of them are its own."""

    within: int
    leaf: str
    count: int
    name: str = "sound"

    def part(self, relevance: Tensor) -> Part:
        """[targets, ..., time]."""
        units = relevance.movedim(-1, 1)[:, : self.count]
        units = units.flatten(2) if units.dim() > 2 else units[..., None]
        return Part(self.name, ("target", "time"), units.sum(-1), SoundReading(0.1), units)


@dataclass(frozen=True, slots=True, eq=False)
class NumbersAt:
    """Numbers of a batch."""

    within: int
    leaf: str
    name: str = "numbers"

    def part(self, relevance: Tensor) -> Part:
        """[targets, features]."""
        return Part(self.name, ("target", "feature"), relevance, NumbersReading())


Called = tuple[dict[str, Tensor], Callable[[Any], Tensor]]
"""The inputs of one example alone, and the number that is explained, from the model's output for them."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A model, its tokenizer, the inputs of a batch, and how each example is called alone. `target` is what is asked."""

    model: nn.Module
    tokenizer: Any
    given: Given
    alone: Sequence[Called]
    target: Any = None
    lookups: tuple[str, ...] = ("input_ids",)
    made_by: Callable[[Any], Sequence[nn.Module]] = field(default=lambda model: [model.get_input_embeddings()])


def by_hand(case: Case, index: int) -> tuple[float, dict[str, Tensor]]:
    """The number of one example, and input * gradient of each of its inputs by name, without the batch."""
    inputs, number = case.alone[index]
    inputs = {name: value.clone() for name, value in inputs.items()}
    floats = {name: value.requires_grad_() for name, value in inputs.items() if value.is_floating_point()}
    with looked_up(case.made_by(case.model)) as made:
        value = number(case.model(**inputs))
    leaves = floats | dict(zip(case.lookups, made, strict=True))
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), gradients, strict=True)
    found = {name: (leaf * gradient).detach() for (name, leaf), gradient in pairs if gradient is not None}
    return float(value.detach()), found


@contextmanager
def looked_up(embeddings: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What embeddings give, as leaves, in the order of their calls."""
    made: list[Tensor] = []

    def as_leaf(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        made.append(output.detach().requires_grad_())
        return made[-1]

    handles = [embedding.register_forward_hook(as_leaf) for embedding in embeddings]
    try:
        yield made
    finally:
        for handle in handles:
            handle.remove()


def padded(tokenizer: Any, texts: Sequence[Sequence[int]], side: str, pad: int = 0, prefix: str = "") -> dict[str, Tensor]:
    """The ids and the mask of texts padded on this side, or on `both`: every other one in front."""
    width = max(map(len, texts))
    ids, mask = torch.full((len(texts), width), pad), torch.zeros(len(texts), width, dtype=torch.long)
    for row, text in enumerate(texts):
        own = list(columns(text, width, side_of(row, side)))
        ids[row, own], mask[row, own] = torch.tensor(text), 1
    return {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask}


def columns(text: Sequence[int], width: int, side: str) -> tuple[int, ...]:
    """The columns of a text in a batch of this width."""
    return tuple(range(width - len(text), width) if side == "left" else range(len(text)))


def side_of(row: int, side: str) -> str:
    """The side that a text of a batch is padded on."""
    return ("right", "left")[row % 2] if side == "both" else side


def texts_at(tokenizer: Any, texts: Sequence[Sequence[int]], side: str, **names: str) -> list[TextAt]:
    """The places of texts in a padded batch."""
    width = max(map(len, texts))
    own = [columns(text, width, side_of(row, side)) for row, text in enumerate(texts)]
    return [TextAt(tokenizer, tuple(t), at, index, **names) for index, (t, at) in enumerate(zip(texts, own, strict=True))]


def positions_for(inputs: dict[str, Tensor], side: str) -> dict[str, Tensor]:
    """The positions of texts that are padded in front, in the texts themselves; none for others."""
    return {} if side == "right" else {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}


def in_batch(inputs: dict[str, Any], *places: Sequence[Any]) -> Given:
    """A batch whose examples have one place of each of these."""
    return Given(inputs, tuple(Example(tuple(each)) for each in zip(*places, strict=True)), True)


def encoded(tokenizer: Any, *texts: str) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in texts]


@functools.cache
def byte_tokenizer() -> Any:
    return tiny_text.byte_tokenizer()


@functools.cache
def word_tokenizer() -> Any:
    return tiny_text.word_tokenizer()


TEXTS = ("The capital of France is", "Paris play")


def causal(side: str) -> Case:
    tokenizer = byte_tokenizer()
    texts = encoded(tokenizer, *TEXTS)
    alone: list[Called] = [({"input_ids": torch.tensor([t])}, lambda out: out.logits[0, -1].max()) for t in texts]
    inputs = padded(tokenizer, texts, side, tokenizer.pad_token_id)
    inputs |= positions_for(inputs, side)
    return Case(tiny_text.llama(len(tokenizer)), tokenizer, in_batch(inputs, texts_at(tokenizer, texts, side)), alone)


def bert_case(
    kind: str, texts: Sequence[str], number: Callable[[Any, list[int]], Tensor], **config: Any
) -> Case:
    """A BERT with absolute positions. The texts are read as a person gives them, padded on both sides; those of a
    classifier behind, because it takes what stands in column 0."""
    tokenizer = word_tokenizer()
    ids = encoded(tokenizer, *texts)
    alone: list[Called] = [({"input_ids": torch.tensor([t])}, functools.partial(_of_text, number, t)) for t in ids]
    made = {"answers": answering_bert, "values": predicting_bert}.get(kind, functools.partial(tiny_text.bert, kind))
    model = made(len(tokenizer))
    for name, value in config.items():
        setattr(model.config, name, value)
    inputs = padded(tokenizer, ids, "right" if kind in ("classifier", "values") else "both", tokenizer.pad_token_id)
    return Case(model, tokenizer, read_inputs(model, tokenizer, inputs, "explain"), alone)


def _of_text(number: Callable[[Any, list[int]], Tensor], text: list[int], output: Any) -> Tensor:
    return number(output, text)


def answering_bert(vocabulary: int) -> nn.Module:
    return tiny._made(hf.BertForQuestionAnswering, hf.BertConfig(vocab_size=vocabulary, **SIZES), "sdpa")


def predicting_bert(vocabulary: int) -> nn.Module:
    config = hf.BertConfig(vocab_size=vocabulary, **SIZES, num_labels=2, problem_type="regression")
    return tiny._made(hf.BertForSequenceClassification, config, "sdpa")


def masked() -> Case:
    mask = word_tokenizer().mask_token_id
    texts = ("The capital of [MASK] is Paris", "[MASK] play", "Rome : [MASK]")
    return bert_case("masked", texts, lambda out, text: out.logits[0, text.index(mask)].max())


def classifying() -> Case:
    return bert_case("classifier", (*TEXTS, "Rome"), lambda out, text: out.logits[0].max())


def several_labels() -> Case:
    labels = {"problem_type": "multi_label_classification"}
    case = bert_case("classifier", (*TEXTS, "Rome"), lambda out, text: out.logits[0, 1], **labels)
    return replace(case, target="fair")


def regression() -> Case:
    """Of two values the first."""
    return bert_case("values", (*TEXTS, "Rome"), lambda out, text: out.logits[0, 0])


def tagging() -> Case:
    return bert_case("tagger", (*TEXTS, "Rome"), lambda out, text: out.logits[0, len(text) - 2].max())


def best_answer(out: Any, text: list[int]) -> Tensor:
    """The best start and end behind the first separator, the end not before the start."""
    first = text.index(word_tokenizer().sep_token_id) + 1
    spans = [(i, j) for i in range(first, len(text) - 1) for j in range(i, len(text) - 1)]
    return max((out.start_logits[0, i] + out.end_logits[0, j] for i, j in spans), key=lambda span: float(span.detach()))


def answering() -> Case:
    texts = ("The capital [SEP] The capital of France is Paris", "Rome [SEP] play Paris", "play [SEP] Rome and London")
    return bert_case("answers", texts, best_answer)


def encoder_decoder() -> Case:
    model, tokenizer = ids_models.t5()[0], byte_tokenizer()
    sources, targets = [[5, 9, 17, 23, 11, 3], [6, 7, 8], [6, 12]], [[0, 7, 8, 9], [0, 4], [0, 5, 6]]
    inputs = padded(tokenizer, sources, "both") | padded(tokenizer, targets, "right", prefix="decoder_")
    alone: list[Called] = [
        ({"input_ids": torch.tensor([s]), "decoder_input_ids": torch.tensor([t])}, lambda out: out.logits[0, -1].max())
        for s, t in zip(sources, targets, strict=True)
    ]
    tables = {id(stack.embed_tokens): stack.embed_tokens for stack in (model.encoder, model.decoder)}
    return Case(
        model, tokenizer, read_inputs(model, tokenizer, inputs, "explain"), alone,
        lookups=("input_ids", "decoder_input_ids"),
        made_by=lambda _: list(tables.values()),
    )  # fmt: skip


def pixels(count: int, channels: int, size: int) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1)).double()


def of_images(model: nn.Module, images: Tensor, number: Callable[[Any], Tensor], target: Any = None) -> Case:
    alone: list[Called] = [({"pixel_values": image[None]}, number) for image in images]
    given = in_batch({"pixel_values": images}, [ImageAt(index) for index in range(len(images))])
    return Case(model, None, given, alone, target, lookups=(), made_by=lambda model: [])


def images() -> Case:
    return of_images(tiny_text.vit(), pixels(2, 3, 8), lambda out: out.logits[0].max())


def detecting() -> Case:
    config = hf.YolosConfig(**SIZES, image_size=[16, 16], patch_size=8, num_detection_tokens=4, num_labels=3)
    model = tiny._made(hf.YolosForObjectDetection, config, "sdpa")

    def surest(out: Any) -> Tensor:
        chances = out.logits[0].softmax(-1)[:, :-1]
        box, kind = divmod(int(chances.argmax()), 3)
        return out.logits[0, box, kind]

    return of_images(model, pixels(2, 3, 16), surest)


def segmenting() -> Case:
    config = hf.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[3, 3], strides=[2, 2],
        num_attention_heads=[2, 4], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=4,
    )  # fmt: skip
    model = tiny._made(hf.SegformerForSemanticSegmentation, config, "sdpa")

    def largest(out: Any) -> Tensor:
        given = out.logits[0].argmax(0)
        kind = int(given.flatten().mode().values)
        return out.logits[0, kind][given == kind].mean()

    return of_images(model, pixels(2, 3, 16), largest)


def surest_mask(out: Any) -> Tensor:
    chances = out.class_queries_logits[0].softmax(-1)[:, :-1]
    mask, kind = divmod(int(chances.argmax()), chances.shape[1])
    return out.class_queries_logits[0, mask, kind]


def swin() -> hf.SwinConfig:
    return hf.SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


class Masks(nn.Module):
    """Masks with a class each, made as MaskFormer makes them: queries look at the picture, and masks are their products
    with its patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.queries = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(4, 8))
        self.look, self.classes = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

    def forward(self, pixel_values: Tensor) -> Any:
        """Of 4 masks and 3 classes."""
        seen = self.patches(pixel_values)
        flat = seen.flatten(2).transpose(1, 2)
        found, _ = self.look(self.queries.expand(len(seen), -1, -1), flat, flat, need_weights=False)
        return ModelOutput(
            class_queries_logits=self.classes(found), masks_queries_logits=torch.einsum("bqc,bchw->bqhw", found, seen)
        )


def masks() -> Case:
    torch.manual_seed(0)
    return of_images(Masks().eval(), pixels(2, 3, 16), surest_mask)


def maskformer() -> Case:
    config = hf.MaskFormerConfig(
        backbone_config=swin(), fpn_feature_size=32, mask_feature_size=32, num_labels=3,
        decoder_config=hf.DetrConfig(
            d_model=32, num_queries=4, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
            encoder_attention_heads=2, decoder_attention_heads=2,
        ),
    )  # fmt: skip
    return of_images(tiny._made(hf.MaskFormerForInstanceSegmentation, config, "eager"), pixels(2, 3, 32), surest_mask)


def mask2former() -> Case:
    config = hf.Mask2FormerConfig(
        backbone_config=swin(), feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=4, num_labels=3,
    )  # fmt: skip
    return of_images(tiny._made(hf.Mask2FormerForUniversalSegmentation, config, "eager"), pixels(2, 3, 32), surest_mask)


def depth() -> Case:
    """The depth of a pixel."""
    config = hf.GLPNConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3], strides=[2, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8,
    )  # fmt: skip
    model = tiny._made(hf.GLPNForDepthEstimation, config, "eager")
    return of_images(model, pixels(2, 3, 16), lambda out: out.predicted_depth[0, 5, 6], Target.at((5, 6)))


def of_sounds(kind: Any, number: Callable[[Any], Tensor], target: Any = None, **config: Any) -> Case:
    settings = hf.Wav2Vec2Config(
        vocab_size=8, **SIZES, conv_dim=(16, 16), conv_stride=(4, 2), conv_kernel=(8, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, feat_extract_norm="layer", do_stable_layer_norm=True,
        pad_token_id=0, **config,
    )  # fmt: skip
    sounds = torch.randn(2, 160, generator=torch.Generator().manual_seed(0)).double()
    alone: list[Called] = [({"input_values": sound[None]}, number) for sound in sounds]
    given = in_batch({"input_values": sounds}, [SoundAt(index, "input_values", 160) for index in range(2)])
    model = tiny._made(kind, settings, "sdpa")
    return Case(model, None, given, alone, target, lookups=(), made_by=lambda model: [])


def transcribing() -> Case:
    def transcript(out: Any) -> Tensor:
        best = out.logits[0].max(-1)
        return best.values[best.indices != 0].sum()

    return of_sounds(hf.Wav2Vec2ForCTC, transcript)


def sounds() -> Case:
    sizes = {"num_labels": 3, "classifier_proj_size": 16}
    return of_sounds(hf.Wav2Vec2ForSequenceClassification, lambda out: out.logits[0].max(), **sizes)


def frames() -> Case:
    """A class at a frame."""
    kind = hf.Wav2Vec2ForAudioFrameClassification
    return of_sounds(kind, lambda out: out.logits[0, 3, 1], Target.at(3, 1), num_labels=2)


def whisper() -> Case:
    model, tokenizer = tiny.whisper(), byte_tokenizer()
    features = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(0)).double()
    texts = [[1, 7, 8, 9], [1, 4]]
    inputs = {"input_features": features, **padded(tokenizer, texts, "right", prefix="decoder_")}
    sounds = [SoundAt(index, "input_features", 20) for index in range(2)]
    alone: list[Called] = [
        ({"input_features": f[None], "decoder_input_ids": torch.tensor([t])}, lambda out: out.logits[0, -1].max())
        for f, t in zip(features, texts, strict=True)
    ]
    given = in_batch(inputs, sounds, texts_at(tokenizer, texts, "right", leaf="decoder_input_ids", name="answer"))
    made_by = [model.model.decoder.embed_tokens]
    return Case(model, tokenizer, given, alone, lookups=("decoder_input_ids",), made_by=lambda _: made_by)


def vision_language() -> Case:
    tokenizer = byte_tokenizer()
    picture = len(tokenizer)
    text = hf.LlamaConfig(vocab_size=picture + 1, **SIZES, num_key_value_heads=2)
    vision = hf.CLIPVisionConfig(**SIZES, image_size=16, patch_size=8, projection_dim=16)
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=picture, vision_feature_layer=-1)
    config.image_token_id = picture
    model = tiny._made(hf.LlavaForConditionalGeneration, config, "sdpa")
    texts = [[*[picture] * 4, *t] for t in encoded(tokenizer, *TEXTS, "Rome")]
    shown = pixels(3, 3, 16)
    inputs = {**padded(tokenizer, texts, "both", tokenizer.pad_token_id), "pixel_values": shown}
    inputs |= positions_for(inputs, "both")
    alone: list[Called] = [
        ({"input_ids": torch.tensor([t]), "pixel_values": image[None]}, lambda out: out.logits[0, -1].max())
        for t, image in zip(texts, shown, strict=True)
    ]
    places = [ImageAt(index) for index in range(3)], texts_at(tokenizer, texts, "both")
    return Case(model, tokenizer, in_batch(inputs, *places), alone)


def pairs() -> Case:
    """Two pairs of texts: four entries of a batch."""
    tokenizer = word_tokenizer()
    ids = encoded(tokenizer, TEXTS[0], TEXTS[1], "Paris", "The capital of England is London")
    named = enumerate(texts_at(tokenizer, ids, "both"))
    places = [replace(place, name=f"text {'ab'[index % 2]}") for index, place in named]
    examples = tuple(Example((places[first], places[first + 1])) for first in (0, 2))
    inputs = padded(tokenizer, ids, "both", tokenizer.pad_token_id)
    given = Given({**inputs, **positions_for(inputs, "both")}, examples, True)
    return Case(tiny_text.bert("bare", len(tokenizer)), tokenizer, given, [])


class Sentences(nn.Module):
    """As a SentenceTransformer is called: features in a dict, a dict with their embedding."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        names = ("input_ids", "attention_mask", "position_ids")
        hidden = self.encoder(**{name: features[name] for name in names if name in features}).last_hidden_state
        weight = features["attention_mask"][..., None].to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1)
        return {"token_embeddings": hidden, "sentence_embedding": nn.functional.normalize(mean, dim=-1)}


def matching() -> Case:
    model, inputs = ids_models.clip()
    tokenizer = byte_tokenizer()
    ids, mask, shown = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"].double()
    texts = [[int(i) for i in row[m.bool()]] for row, m in zip(ids, mask, strict=True)]
    alone: list[Called] = [
        ({"input_ids": torch.tensor([t]), "pixel_values": image[None]}, lambda out: out.logits_per_image[0, 0])
        for t, image in zip(texts, shown, strict=True)
    ]
    given = in_batch({**inputs, "pixel_values": shown}, [ImageAt(0), ImageAt(1)], texts_at(tokenizer, texts, "right"))
    return Case(model, tokenizer, given, alone, made_by=lambda model: [model.text_model.embeddings.token_embedding])


CASES: dict[str, Callable[[], Case]] = {
    "causal": lambda: causal("right"),
    "causal, padded left": lambda: causal("left"),
    "masked": masked,
    "classifying": classifying,
    "several labels": several_labels,
    "regression": regression,
    "tagging": tagging,
    "question answering": answering,
    "encoder-decoder": encoder_decoder,
    "image": images,
    "detection": detecting,
    "segmentation": segmenting,
    "masks": masks,
    "depth": depth,
    "transcribing": transcribing,
    "sounds": sounds,
    "frames": frames,
    "whisper": whisper,
    "vision-language": vision_language,
    "matching": matching,
}


SLOW: dict[str, Callable[[], Case]] = {"maskformer": maskformer, "mask2former": mask2former}
"""Models of masks, which take long to capture whatever their size."""


@functools.cache
def case_of(name: str) -> Case:
    """A case with its model in float64."""
    found = (CASES | SLOW)[name]()
    found.model.double()
    return found


def inputs_of(case: Case) -> dict[str, Any]:
    return dict(case.given.inputs)


@functools.cache
def explained(name: str) -> lxt_fx.Explained:
    """The model of a case under the table `gradient`."""
    case = case_of(name)
    return lxt_fx.transform(case.model, kwargs=inputs_of(case), rules="gradient")
