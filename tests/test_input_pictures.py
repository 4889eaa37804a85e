"""Pictures, texts with pictures, and sounds, made the inputs of a call; and their relevance put where a person sees it."""

from __future__ import annotations

import copy
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_text import vit
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

import lxt_fx
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Given, part_of
from lxt_fx.inputs.places import PatchGrid
from lxt_fx.inputs.read import read_inputs
from lxt_fx.inputs.resampling import resampled
from lxt_fx.results.readings import ImageReading, SoundReading

Image = pytest.importorskip("PIL.Image")
PIXELS = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
TALL = np.random.default_rng(1).integers(0, 255, (40, 30, 3), dtype=np.uint8)
SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
}  # fmt: skip


def read(model: Any, processor: Any, what: Any, **more: Any) -> Given:
    return read_inputs(model, processor, what, "explain", **more)


@pytest.fixture(scope="module")
def model() -> Any:
    return vit()


@pytest.fixture(scope="module")
def processor() -> Any:
    return transformers.ViTImageProcessor(size={"height": 8, "width": 8})


def expected(processor: Any, picture: Any) -> Tensor:
    found: Tensor = processor(images=[Image.fromarray(picture)], return_tensors="pt")["pixel_values"]
    return found


KINDS: dict[str, Any] = {
    "PIL": Image.fromarray(PIXELS),
    "array": PIXELS,
    "array of 0 to 1": PIXELS / 255,
    "array of 0 to 255 in floats": PIXELS.astype(np.float32),
    "array, channels first": PIXELS.transpose(2, 0, 1),
    "tensor, channels first": torch.tensor(PIXELS).permute(2, 0, 1),
    "tensor, channels last": torch.tensor(PIXELS),
    "tensor of 0 to 1": torch.tensor(PIXELS).permute(2, 0, 1) / 255,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_any_kind_goes_through_the_processor(model: Any, processor: Any, kind: str) -> None:
    given = read(model, processor, KINDS[kind])
    torch.testing.assert_close(given.inputs["pixel_values"], expected(processor, PIXELS))
    assert not given.batched
    with pytest.raises(InputError, match="no image processor was given|takes 8 x 8 pixels"):
        read(model, None, KINDS[kind])


def test_a_narrow_tensor_has_its_channels_first_and_a_flat_array_last(model: Any, processor: Any) -> None:
    narrow = PIXELS[:, :4]
    given = read(model, processor, torch.tensor(narrow).permute(2, 0, 1))
    torch.testing.assert_close(given.inputs["pixel_values"], expected(processor, narrow))
    torch.testing.assert_close(read(model, processor, PIXELS[:3]).inputs["pixel_values"], expected(processor, PIXELS[:3]))


@pytest.mark.parametrize("form", [str, Path])
def test_the_path_of_a_picture_is_read(model: Any, processor: Any, tmp_path: Path, form: type) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(PIXELS).save(path)
    given = read(model, processor, form(path))
    torch.testing.assert_close(given.inputs["pixel_values"], expected(processor, PIXELS))
    with pytest.raises(InputError, match="there is no file"):
        read(model, processor, form(tmp_path / "other.png"))


def test_a_list_of_pictures_of_any_size_is_a_batch(model: Any, processor: Any) -> None:
    given = read(model, processor, [PIXELS, Image.fromarray(TALL)])
    both = torch.cat([expected(processor, PIXELS), expected(processor, TALL)])
    torch.testing.assert_close(given.inputs["pixel_values"], both)
    assert given.batched and [example.places[0].within for example in given.examples] == [0, 1]


def test_a_picture_is_shown_as_the_model_saw_it(model: Any, processor: Any) -> None:
    reading = read(model, processor, PIXELS).examples[0].places[0].reading  # type: ignore[attr-defined]
    resized = Image.fromarray(PIXELS).resize((8, 8), resample=Image.Resampling.BILINEAR)
    assert isinstance(reading, ImageReading) and reading.patch == 4
    assert torch.equal(reading.shown, torch.tensor(np.asarray(resized)))
    assert reading.pixel_values is not None and reading.pixel_values.dtype == torch.float32
    torch.testing.assert_close(reading.pixel_values, expected(processor, PIXELS)[0])


def test_the_relevance_of_a_picture_is_that_of_its_pixels(model: Any, processor: Any) -> None:
    relevance = torch.randn(2, 1, 3, 8, 8)
    part = part_of(read(model, processor, PIXELS).examples[0].places[0], relevance)
    assert part.axes == ("target", "row", "column") and part.units is not None
    torch.testing.assert_close(part.values, relevance[:, 0].sum(1))
    assert torch.equal(part.units[..., 1], relevance[:, 0, 1])


def test_a_tensor_of_the_models_own_size_is_normalised_already(model: Any, processor: Any) -> None:
    for own in (torch.randn(3, 8, 8), torch.randn(1, 3, 8, 8), torch.randn(2, 3, 8, 8).double()):
        given = read(model, processor, own)
        assert torch.equal(given.inputs["pixel_values"], own.reshape(-1, 3, 8, 8).float())
        assert given.batched == (len(given.inputs["pixel_values"]) == 2)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (torch.randn(3, 16, 16), "takes 8 x 8 pixels of 3 channels; give interpolate_pos_encoding=True"),
        ({"pixel_values": torch.randn(1, 3, 16, 16)}, "interpolate_pos_encoding=True"),
        (torch.randn(1, 8, 8), "of 3 channels"),
        (torch.full((3, 8, 8), float("nan")), "pixel_values is nan at"),
        (["a.png", [1, 2]], "one kind of input"),
        ({"input_ids": [[1]]}, "takes none of input_ids|gives input_ids"),
        (("a", "b"), "takes no text"),
    ],
)
def test_refused_before_any_work(model: Any, what: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        read(model, None, what)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (np.full((20, 30, 3), -1.0), "0 to 255"),
        (np.full((20, 30, 3), np.nan), "NaN"),
        (np.zeros((20, 30, 7), dtype=np.uint8), "1, 3 or 4 channels"),
    ],
)
def test_pixels_that_are_none_are_refused(model: Any, processor: Any, what: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        read(model, processor, what)


def test_another_size_passes_where_positions_are_interpolated(model: Any) -> None:
    given = read(model, None, {"pixel_values": torch.randn(1, 3, 16, 16), "interpolate_pos_encoding": True})
    assert given.inputs["pixel_values"].shape == (1, 3, 16, 16) and given.inputs["interpolate_pos_encoding"] is True


class Step:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)


class Transform:
    """Like the transform that timm makes: a list of steps, the last of which normalises."""

    transforms = (Step(),)

    def __call__(self, picture: Any) -> Tensor:
        pixels = torch.tensor(np.asarray(picture.resize((8, 8)))).permute(2, 0, 1) / 255
        mean, std = torch.tensor(Step.mean), torch.tensor(Step.std)
        return (pixels - mean[:, None, None]) / std[:, None, None]


def test_a_model_of_no_library_takes_its_transform_and_its_tensors() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    given = read(net, Transform(), PIXELS)
    assert torch.equal(given.inputs["input"], Transform()(Image.fromarray(PIXELS))[None])
    shown = given.examples[0].places[0].reading.shown  # type: ignore[attr-defined]
    assert torch.equal(shown, torch.tensor(np.asarray(Image.fromarray(PIXELS).resize((8, 8)))))
    assert read(net, None, torch.randn(3, 8, 8)).examples[0].places[0].leaf == "input"
    table = nn.Sequential(nn.Linear(4, 2)).eval()
    many = read(table, None, torch.randn(3, 4))
    assert many.batched and part_of(many.examples[2].places[0], torch.ones(1, 3, 4)).axes == ("target", "feature")
    assert read(table, None, [1.0, 2.0, 3.0, 4.0]).inputs["input"].tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert read(table, None, {"input": torch.randn(1, 4)}).examples[0].places[0].name == "input"


def words(*marks: str) -> Any:
    """A tokenizer of a few words and these marks."""
    names = ["<pad>", "<unk>", "<s>", "</s>", *marks, "a", "cat", "what", "is", "this", "the", "dog"]
    made = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    roles = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, additional_special_tokens=list(marks), **roles)


VISION = {**SMALL, "image_size": 8, "patch_size": 4}
TEXT = {**SMALL, "vocab_size": 70}
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def clip_images() -> Any:
    return transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


@pytest.fixture(scope="module")
def llava(clip_images: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    tokenizer = words("<image>")
    tokenizer.padding_side = "left"
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_id=4,
    )
    made = transformers.LlavaProcessor(
        clip_images, tokenizer, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config).eval(), made


def test_a_text_with_a_picture_is_one_example_of_both(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    given = read(model, processor, {"text": "<image> what is this", "images": PIXELS})
    made = processor(text=["<image> what is this"], images=[Image.fromarray(PIXELS)], return_tensors="pt")
    assert all(torch.equal(given.inputs[name], made[name]) for name in ("input_ids", "pixel_values"))
    text, picture = given.examples[0].places
    assert text.reading.tokens == (" what", " is", " this")  # type: ignore[attr-defined]
    assert (picture.name, picture.leaf, picture.within) == ("image", "pixel_values", 0)
    assert len(text.own) == 7 and text.columns == (4, 5, 6)  # type: ignore[attr-defined]
    chat = [{"role": "user", "content": [{"type": "image", "image": PIXELS}, {"type": "text", "text": "what is this"}]}]
    again = read(model, processor, chat)
    assert torch.equal(again.inputs["input_ids"], given.inputs["input_ids"]) and not again.batched
    assert torch.equal(again.inputs["pixel_values"], given.inputs["pixel_values"])


def test_what_the_template_writes_in_a_chat_with_a_picture_is_marked(llava: tuple[Any, Any]) -> None:
    model, processor = llava[0], copy.copy(llava[1])
    processor.chat_template = "dog " + TEMPLATE + " cat"
    content = [{"type": "image"}, {"type": "text", "text": "what is this"}]
    for chat in (
        [{"role": "user", "content": [{**content[0], "image": PIXELS}, content[1]]}],
        {"messages": [{"role": "user", "content": content}], "images": PIXELS},
    ):
        reading = read(model, processor, chat).examples[0].places[0].reading  # type: ignore[attr-defined]
        assert reading.tokens == ("dog", " what", " is", " this", " cat")
        assert reading.special == (True, False, False, False, True)


def test_texts_with_pictures_are_a_batch_and_each_has_its_own(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    first = {"text": "<image> what is this", "images": PIXELS}
    second = {"text": "<image> <image> dog", "images": [TALL, PIXELS]}
    given = read(model, processor, [first, second])
    assert [[place.name for place in example.places] for example in given.examples] == [
        ["text", "image"], ["text", "image 1", "image 2"],
    ]  # fmt: skip
    assert [place.within for place in given.examples[1].places] == [1, 1, 2]
    with torch.no_grad():
        together = model(**given.inputs).logits
        for index, one in enumerate((first, second)):
            alone = model(**read(model, processor, one).inputs).logits[0, -1]
            torch.testing.assert_close(together[index, -1], alone, rtol=1e-5, atol=1e-5)


OTHER_SIDE = pytest.mark.slow("padding behind the text, which test_answers.py has for texts alone")


@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=OTHER_SIDE)])
def test_answers_about_pictures_are_a_batch(llava: tuple[Any, Any], side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = llava
    monkeypatch.setattr(processor.tokenizer, "padding_side", side)
    prompts = [{"text": "<image> what is this", "images": PIXELS}, {"text": "<image> dog", "images": PIXELS[::-1].copy()}]
    answers = ["dog is", "this"]
    found = lxt_fx.answer_relevance(model, processor, prompts, answers)
    for one, prompt, answer in zip(found, prompts, answers, strict=True):
        alone = lxt_fx.answer_relevance(model, processor, prompt, answer)
        assert [part.name for part in one.parts] == ["text", "image"] and one.tokens == alone.tokens
        for part, other in zip(one.parts, alone.parts, strict=True):
            largest = float(other.values.abs().max())
            assert largest > 0 and len(part.values) == len(answer.split())
            torch.testing.assert_close(part.values, other.values, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (PIXELS, "reads a text with its pictures"),
        ({"text": "<image> what", "images": None}, "comes without a picture"),
        ({"text": " ", "images": PIXELS}, "is empty"),
        ({"text": 3, "images": PIXELS}, "must be a string"),
    ],
)
def test_half_of_text_and_picture_is_refused(llava: tuple[Any, Any], what: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        read(*llava, what)
    with pytest.raises(InputError, match="only a tokenizer was given"):
        read(llava[0], llava[1].tokenizer, {"text": "<image> what", "images": PIXELS})


def test_flat_patches_are_put_back_where_they_lie() -> None:
    processor = transformers.Qwen2VLImageProcessor(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024)
    made = processor(images=[Image.fromarray(TALL)], return_tensors="pt")
    times, rows, columns = made["image_grid_thw"][0].tolist()
    picture = PatchGrid(times, rows, columns, 2, 2, 4).picture(made["pixel_values"])
    resized = Image.fromarray(TALL).resize((columns * 4, rows * 4), resample=Image.Resampling.BICUBIC)
    pixels = torch.tensor(np.asarray(resized)).permute(2, 0, 1) / 255
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    normalised = (pixels - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(picture, normalised[:, None].expand(-1, 2, -1, -1))


def test_pictures_in_flat_patches_belong_to_their_texts() -> None:
    marks = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
    tokenizer, images = words(*marks), transformers.Qwen2VLImageProcessor(
        patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024
    )  # fmt: skip
    rope = {"rope_type": "default", "type": "default", "mrope_section": [2, 1, 1]}
    names = ("image_token_id", "vision_start_token_id", "vision_end_token_id", "video_token_id")
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, "num_key_value_heads": 2, "rope_scaling": rope},
        vision_config={
            "depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "mlp_ratio": 2,
        },
        **dict(zip(names, range(4, 8), strict=True)),
    )  # fmt: skip
    model = transformers.Qwen2VLForConditionalGeneration(config).eval()
    made = images(images=[Image.fromarray(PIXELS), Image.fromarray(TALL)], return_tensors="pt")
    counts = (made["image_grid_thw"].prod(-1) // 4).tolist()
    texts = [" ".join(["<|vision_start|>", *["<|image_pad|>"] * count, "<|vision_end|> dog"]) for count in counts]
    batch = {**tokenizer(texts, padding=True, return_tensors="pt"), **made}
    batch.pop("token_type_ids", None)
    given = read(model, tokenizer, batch)
    first, second = (example.places[1] for example in given.examples)
    assert (first.within, second.within) == (slice(0, 32), slice(32, 80)) and given.batched
    part = part_of(second, torch.ones(1, *made["pixel_values"].shape))
    assert part.axes == ("target", "row", "column") and part.values.shape == (1, 32, 24)
    assert bool((part.values == 2 * 3).all())  # two frames of three channels
    assert second.reading.shown.shape == (32, 24, 3)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def clip(clip_images: Any) -> tuple[Any, Any]:
    text = {**TEXT, "max_position_embeddings": 16, "eos_token_id": 3}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=VISION)).eval()
    return model, transformers.CLIPProcessor(clip_images, words())


@pytest.mark.parametrize(
    ("text", "images", "withins"),
    [
        ("a cat", PIXELS, [(0, 0)]),
        (["a cat", "the dog is"], [PIXELS, TALL], [(0, 0), (1, 1)]),
        ("a cat", [PIXELS, TALL], [(0, 0), (1, 1)]),
    ],
)
def test_texts_and_pictures_that_are_compared_are_pairs(clip: Any, text: Any, images: Any, withins: Any) -> None:
    given = read(*clip, {"text": text, "images": images})
    assert [tuple(place.within for place in example.places) for example in given.examples] == withins
    assert given.batched == (len(withins) > 1)
    pictures = [images] * len(withins) if not isinstance(images, list) else images
    for index, picture in enumerate(pictures):
        torch.testing.assert_close(given.inputs["pixel_values"][index], expected(clip[1].image_processor, picture)[0])


def test_several_texts_for_one_picture_are_one_example(clip: Any) -> None:
    model, processor = clip
    texts = ["a cat", "the dog is"]
    made = processor(text=texts, images=[Image.fromarray(PIXELS)], padding=True, return_tensors="pt")
    asked = {"text": texts, "images": PIXELS}
    for what in (asked, made):
        given = read(model, processor, what)
        (example,) = given.examples
        assert [(place.name, place.within) for place in example.places] == [("image", 0), ("text 1", 0), ("text 2", 1)]
        assert not given.batched
        for name in ("input_ids", "attention_mask", "pixel_values"):
            torch.testing.assert_close(given.inputs[name], made[name])
    batch = read(model, processor, [{"text": "the dog", "images": TALL}, asked])
    assert [[place.name for place in example.places] for example in batch.examples] == [
        ["text", "image"], ["image", "text 1", "text 2"],
    ]  # fmt: skip
    assert [place.within for place in batch.examples[1].places] == [1, 1, 2] and batch.batched


WAVE = np.random.default_rng(0).standard_normal(8000).astype(np.float32) / 8


class Both:
    """A processor with a feature extractor and a tokenizer, as that of Whisper is."""

    def __init__(self, extractor: Any, tokenizer: Any) -> None:
        self.feature_extractor, self.tokenizer = extractor, tokenizer

    def __call__(self) -> None:
        raise NotImplementedError


@pytest.fixture(scope="module")
def whisper() -> tuple[Any, Any]:
    config = transformers.WhisperConfig(
        vocab_size=70, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=50, max_target_positions=32,
        decoder_start_token_id=2, pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    return transformers.WhisperForConditionalGeneration(config).eval(), Both(extractor, words())


def test_a_sound_is_read_with_its_axis_of_time(whisper: Any, tmp_path: Path) -> None:
    model, processor = whisper
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((WAVE * 32768).round().astype("<i2").tobytes())
    expected = processor.feature_extractor(WAVE, sampling_rate=16000, return_tensors="pt").input_features
    for what in (WAVE, torch.tensor(WAVE), {"array": WAVE, "sampling_rate": 16000}, {"audio": WAVE}, str(path), path):
        given = read(model, processor, what)
        torch.testing.assert_close(given.inputs["input_features"], expected, rtol=1e-2, atol=1e-2)
        sound, said = given.examples[0].places
        assert isinstance(sound.reading, SoundReading) and sound.reading.step == 0.01  # type: ignore[attr-defined]
        assert said.leaf == "decoder_input_ids" and given.inputs["decoder_input_ids"].tolist() == [[2]]
    relevance = torch.randn(1, 1, 8, 100)
    torch.testing.assert_close(part_of(sound, relevance).values, relevance[:, 0].sum(1))
    given = read(model, processor, [WAVE, WAVE[:4000]], answer=["the dog is", "a cat"])
    assert given.batched and given.inputs["decoder_input_ids"].tolist() == [[2, 9, 10], [2, 4, 0]]
    with pytest.raises(InputError, match="0 samples a second; give how many"):
        read(model, processor, WAVE, sampling_rate=0)
    with pytest.raises(InputError, match="no feature extractor was given"):
        read(model, None, WAVE)
    with pytest.raises(InputError, match="there is no file"):
        read(model, processor, "other.wav")


def tone(pitch: float, rate: int, seconds: float = 0.5) -> Any:
    return np.sin(2 * np.pi * pitch * np.arange(round(rate * seconds)) / rate).astype(np.float32)


@pytest.mark.parametrize("rate", (8000, 22050, 44100, 48000, 15999))
def test_a_sound_of_another_rate_is_resampled(whisper: Any, rate: int) -> None:
    given = read(*whisper, {"array": tone(440, rate), "sampling_rate": rate})
    heard = given.examples[0].places[0].reading.waveform
    expected = torch.tensor(tone(440, 16000, len(heard) / 16000))
    assert abs(len(heard) - 8000) <= 1
    torch.testing.assert_close(heard[200:-200], expected[200:-200], rtol=0, atol=1e-3)  # its ends are cut off, and so ring
    same = whisper[1].feature_extractor(heard.numpy(), sampling_rate=16000, return_tensors="pt").input_features
    assert torch.equal(given.inputs["input_features"], same)


def test_what_the_new_rate_cannot_hold_is_cut_and_not_folded_down() -> None:
    assert resampled(torch.tensor(tone(10_000, 48000)), 48000, 16000)[200:-200].abs().max() < 1e-3
    assert resampled(torch.tensor(tone(6000, 48000)), 48000, 16000)[200:-200].abs().max() > 0.99


def test_bands_may_come_last_and_sounds_of_one_length_need_no_mask() -> None:
    sizes = {"max_length": 64, "num_mel_bins": 32, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
    model = transformers.ASTForAudioClassification(transformers.ASTConfig(**SMALL, **sizes)).eval()
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64)
    given = read(model, extractor, [WAVE, WAVE[:4000]])
    for index, samples in enumerate((WAVE, WAVE[:4000])):
        alone = extractor(samples, sampling_rate=16000, return_tensors="pt").input_values
        torch.testing.assert_close(given.inputs["input_values"][index], alone[0])
    part = part_of(given.examples[0].places[0], torch.ones(1, 2, 64, 32))
    assert part.axes == ("target", "time") and part.values.shape == (1, 64)


def test_samples_are_put_in_bins_and_padding_does_not_show() -> None:
    sizes = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(vocab_size=32, **SMALL, **sizes)).eval()
    given = read(model, transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True), [WAVE, WAVE[:5000]])
    short = given.examples[1].places[0]
    relevance = torch.randn(2, 2, 8000)
    part = part_of(short, relevance)
    assert part.values.shape == (2, 16) and short.reading.step == 0.02  # type: ignore[attr-defined]
    torch.testing.assert_close(part.values[:, 3], relevance[:, 1, 960:1280].sum(-1))
    torch.testing.assert_close(part.values.sum(-1), relevance[:, 1, :5000].sum(-1))
    with pytest.raises(InputError, match="makes no mask"):
        read(model, transformers.Wav2Vec2FeatureExtractor(), [WAVE, WAVE[:5000]])
    with pytest.raises(InputError, match="one channel"):
        read(model, transformers.Wav2Vec2FeatureExtractor(), [WAVE.reshape(2, -1), WAVE.reshape(2, -1)])
