"""The fetched models are trained: each does what random weights cannot. To fetch them: python3 dev.py models NAMES"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import models
from train_vit_digits import digits

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def needs(*names: str) -> None:
    """Skip the test unless the models or data sets `names` were fetched."""
    missing = [name for name in names if not (models.cache_folder() / name).is_dir()]
    if missing:
        pytest.skip(f"not in {models.cache_folder()}; to fetch: python3 dev.py models {' '.join(missing)}")


def perplexity(model: Any, ids: torch.Tensor) -> float:
    return math.exp(model(input_ids=ids, labels=ids).loss.item())


def mean_perplexities(model: Any, tokenizer: Any) -> tuple[float, float]:
    """(of Wikipedia paragraphs, of the same tokens shuffled), as geometric means over five paragraphs."""
    shuffle = torch.Generator().manual_seed(0)
    natural, shuffled = [], []
    for _, paragraph in models.wiki_paragraphs()[:500:100]:
        ids = tokenizer(paragraph, return_tensors="pt").input_ids
        natural.append(perplexity(model, ids))
        shuffled.append(perplexity(model, ids[:, torch.randperm(ids.shape[1], generator=shuffle)]))
    return torch.tensor(natural).log().mean().exp().item(), torch.tensor(shuffled).log().mean().exp().item()


def next_token(model: Any, tokenizer: Any, prompt: str) -> str:
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    return str(tokenizer.decode(model(input_ids=ids).logits[0, -1].argmax()))


def test_smollm2_knows_capitals() -> None:
    needs("smollm2", "texts")
    model, tokenizer = models.load("smollm2")
    assert next_token(model, tokenizer, "The capital of France is") == " Paris"
    best_known = models.country_capitals()[:23]
    answers = [next_token(model, tokenizer, f"The capital of {country} is") for country, _ in best_known]
    # A capital may be several tokens; its first, if longer than a letter, is enough.
    right = sum(
        len(answer.strip()) > 1 and f" {capital}".startswith(answer)
        for answer, (_, capital) in zip(answers, best_known, strict=True)
    )
    assert right >= 16  # of 23


def test_smollm2_reads_english() -> None:
    needs("smollm2", "texts")
    natural, shuffled = mean_perplexities(*models.load("smollm2"))
    assert natural < 40 and shuffled > 1000


def test_gemma3_reads_english() -> None:
    needs("gemma3", "texts")
    natural, shuffled = mean_perplexities(*models.load("gemma3"))
    assert natural < 40 and shuffled > 1000


def test_minilm_puts_paraphrases_together() -> None:
    needs("minilm")
    model, tokenizer = models.load("minilm")
    sentences = [
        "A man is playing a guitar.",
        "Someone plays music on a guitar.",
        "The stock market fell sharply today.",
        "Shares dropped a lot on Wall Street.",
    ]
    inputs = tokenizer(sentences, return_tensors="pt", padding=True)
    words = inputs.attention_mask[..., None]
    means = (model(**inputs).last_hidden_state * words).sum(dim=1) / words.sum(dim=1)
    likeness = torch.cosine_similarity(means[:, None], means[None], dim=-1)
    assert likeness[0, 1] > 0.5 and likeness[2, 3] > 0.5
    assert likeness[:2, 2:].max() < 0.2


@pytest.mark.parametrize(
    ("sentence", "wrong", "edit"),
    [
        ("He is taller then me .", "then", "$REPLACE_than"),
        ("I went home and than I slept .", "than", "$REPLACE_then"),
        ("They left there coats in the hall .", "there", "$REPLACE_their"),
        ("He put the book over their .", "their", "$REPLACE_there"),
        ("It is to late to go .", "to", "$REPLACE_too"),
        ("She ran to the house .", None, None),
    ],
)
def test_tagger_fixes_the_wrong_word_only(sentence: str, wrong: str | None, edit: str | None) -> None:
    needs("tagger")
    model, tokenizer = models.load("tagger")
    inputs = tokenizer(sentence.split(), is_split_into_words=True, return_tensors="pt")
    tags = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits[0].argmax(dim=-1).tolist()
    edits = [
        (sentence.split()[word], model.config.id2label[tag])
        for word, tag in zip(inputs.word_ids(), tags, strict=True)
        if word is not None and tag != 0  # tag 0 is $KEEP
    ]
    assert edits == ([] if wrong is None else [(wrong, edit)])


def test_vit_reads_held_out_digits() -> None:
    needs("vit_digits")
    pytest.importorskip("sklearn", reason="the digits are in scikit-learn: pip install lxt_fx[models]")
    model, _ = models.load("vit_digits")
    _, _, images, labels = digits()
    right = (model(pixel_values=images).logits.argmax(dim=-1) == labels).float().mean().item()
    assert right > 0.95


def test_whisper_hears_spoken_words() -> None:
    needs("whisper", "voices")
    model, processor = models.load("whisper")
    right = 0
    for words, sound in models.voice_clips():
        features = processor(sound.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
        heard = processor.batch_decode(model.generate(features, max_new_tokens=12), skip_special_tokens=True)[0]
        right += "".join(letter for letter in heard.lower() if letter.isalpha() or letter == " ").strip() == words
    assert right >= 7  # of 8; it takes "rear right" for "We're right"


def test_texts_are_the_ones_we_quote() -> None:
    needs("texts")
    assert len(models.wiki_paragraphs()) == 2774
    pairs = models.country_capitals()
    assert len(set(pairs)) == 116 and ("France", "Paris") in pairs
