"""The lens: its matrices against one gradient for each entry, the rebuilt output of a network without biases, and read-outs
against the model's own modules."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_text
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file
from test_answers import batch_of
from torch import Tensor

import lxt_fx
from lxt_fx import InputError, Lens, LensReading
from lxt_fx.attribution import many_targets
from lxt_fx.inside.lens.lens_figure import SHADE
from lxt_fx.inside.lens.residuals import residuals, text_call

PROMPTS = [[5, 9, 17, 23], [6, 7], [3, 1, 4]]


@functools.cache
def model() -> Any:
    """A GPT-2 in float64 whose biases are 0, so that a table with norms, attention and activations held is exact."""
    of = tiny.gpt2().double()
    with torch.no_grad():
        for name, parameter in of.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return of


@functools.cache
def explained(rules: str) -> Any:
    return lxt_fx.transform(model(), rules=rules)


def stream(of: Any, ids: list[int]) -> list[Tensor]:
    """The residual stream [tokens, hidden] before each block and behind the last, with its graph, from the model itself."""
    kept: list[Tensor] = []
    blocks = of.transformer.h
    handles = [block.register_forward_pre_hook(lambda _, given: kept.append(given[0])) for block in blocks]
    last = blocks[-1].register_forward_hook(lambda _, given, out: kept.append(out[0] if isinstance(out, tuple) else out))
    handles.append(last)
    try:
        of(input_ids=torch.tensor([ids]))
    finally:
        for handle in handles:
            handle.remove()
    return kept


def by_entry(of: Any, ids: list[int], chosen: list[int]) -> Tensor:
    """[layers, hidden, hidden]: 1/|V| times the sum over t, t' >= t in V of d h_L,t' / d h_l,t, entry by entry."""
    values = stream(of, ids)
    size = values[-1].shape[-1]
    found = torch.zeros(len(values) - 1, size, size, dtype=torch.float64)
    for later in chosen:
        for unit in range(size):
            gradients = torch.autograd.grad(values[-1][0, later, unit], values[:-1], retain_graph=True)
            for layer, gradient in enumerate(gradients):
                for earlier in chosen:
                    if later >= earlier:
                        found[layer, unit] += gradient[0, earlier]
    return found / len(chosen)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


# The matrices


@pytest.mark.parametrize(
    ("positions", "chosen"),
    [
        (None, [[0, 1, 2, 3], [0, 1], [0, 1, 2]]),
        (slice(1, None), [[1, 2, 3], [1], [1, 2]]),
        ([0, -1], [[0, 3], [0, 1], [0, 2]]),
    ],
)
def test_with_the_gradient_it_is_the_jacobian_lens(positions: Any, chosen: list[list[int]]) -> None:
    found = lxt_fx.lens(explained("gradient"), PROMPTS, positions=positions)
    each = [by_entry(model(), ids, own) for ids, own in zip(PROMPTS, chosen, strict=True)]
    close(found.matrices, torch.stack(each).mean(0))
    assert found.matrices.shape == (2, 32, 32) and found.matrices.dtype == torch.float64
    assert not torch.allclose(found.matrices[0], found.matrices[1]) and found.layers == 2
    assert found.facts.prompts == 3 and found.facts.positions == sum(map(len, chosen))


@pytest.mark.parametrize("rules", ["cp_lrp", "gradient"])
def test_with_norms_and_attention_held_the_output_of_a_network_without_biases_is_rebuilt(rules: str) -> None:
    """h_L = sum_t J_t x_t for one prompt: the sum over t' of h_L,t' from the rows of the Jacobians, before the mean."""
    call = text_call(explained(rules), None, PROMPTS, "lens", None)
    run = residuals(call, "lens")
    mask = call.mask(None, "lens")
    last = (run.values[-1].detach() * mask[..., None]).sum(1)  # [batch, hidden]
    rebuilt = [torch.zeros_like(last) for _ in run.values[:-1]]
    for start, rows in run.rows(mask, 5):
        for layer, each in enumerate(rows):
            by_prompt = torch.einsum("ubth,bth->bu", each, run.values[layer].detach())
            rebuilt[layer][:, start : start + len(each)] = by_prompt
    if rules == "cp_lrp":
        for each in rebuilt:
            close(each, last)
    else:
        assert float((rebuilt[0] - last).abs().max()) > 0.1 * float(last.abs().max())
    single = lxt_fx.lens(explained(rules), [7])
    values = stream(model(), [7])
    if rules == "cp_lrp":
        for matrix, value in zip(single.matrices, values[:-1], strict=True):
            close(matrix @ value[0, 0].detach(), values[-1][0, 0].detach())


def test_prompts_are_padded_and_cut_into_batches_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lxt_fx.lens(explained("attnlrp"), PROMPTS)
    each = [lxt_fx.lens(explained("attnlrp"), ids) for ids in PROMPTS]
    close(whole.matrices, torch.stack([one.matrices for one in each]).mean(0), 1e-10)
    sizes: list[int] = []
    backward = many_targets.backward
    from lxt_fx.inside.lens import residuals as module

    monkeypatch.setattr(module, "backward", lambda *args: sizes.append(len(args[2][0])) or backward(*args))
    cut = lxt_fx.lens(explained("attnlrp"), PROMPTS, batch=2, chunk=12)
    assert sizes == [1, 12, 12, 8, 1, 12, 12, 8], "one row for a check of the order, then the chunks, for each batch"
    close(cut.matrices, whole.matrices, 1e-10)
    assert cut.facts == whole.facts
    left = lxt_fx.lens(explained("attnlrp"), batch_of(PROMPTS, "left"), positions=slice(1, None))
    right = lxt_fx.lens(explained("attnlrp"), PROMPTS, positions=slice(1, None))
    close(left.matrices, right.matrices, 1e-10)
    read = left.read(batch_of(PROMPTS, "left"))
    assert isinstance(read, tuple) and [one.tokens for one in read] == [one.tokens for one in right.read(PROMPTS)]


# Reading


def test_a_layer_is_read_by_the_last_norm_and_the_head_of_the_model() -> None:
    found = lxt_fx.lens(explained("gradient"), PROMPTS)
    reading = found.read(PROMPTS[0], k=3)
    assert isinstance(reading, LensReading) and reading.places == ("residual.0", "residual.1", "residual.2")
    for at, value in enumerate(stream(model(), PROMPTS[0])):
        carried = value[0] if at == 2 else value[0] @ found.matrices[at].T
        logits = model().lm_head(model().transformer.ln_f(carried)).detach()
        best = logits.topk(3)
        close(reading.logits[at], best.values)
        assert torch.equal(reading.ids[at], best.indices)
        close(reading.probability[at], logits.softmax(-1).gather(-1, best.indices))
    own = model()(torch.tensor([PROMPTS[0]])).logits[0, -1].argmax()
    assert reading.top("residual.2")[0] == reading.top(-1, 3)[0] == f" {int(own)}"
    assert reading.tokens == (" 5", " 9", " 17", " 23")


def test_each_text_of_a_padded_batch_is_read_as_alone() -> None:
    found = lxt_fx.lens(explained("gradient"), PROMPTS)
    batch = found.read(PROMPTS, k=2)
    assert isinstance(batch, tuple) and [len(one.tokens) for one in batch] == [4, 2, 3]
    for one, ids in zip(batch, PROMPTS, strict=True):
        alone = found.read(ids, k=2)
        assert isinstance(alone, LensReading) and torch.equal(one.ids, alone.ids)
        close(one.logits, alone.logits, 1e-9)


@functools.cache
def of_texts() -> tuple[Any, Any, Lens]:
    tokenizer = tiny_text.byte_tokenizer()
    of = tiny_text.llama(len(tokenizer))
    texts = ["The capital of France is", "London and Rome"]
    return of, tokenizer, lxt_fx.lens(of, texts, processor=tokenizer, rules="cp_lrp")


def test_texts_are_read_with_their_tokens(tmp_path: Path) -> None:
    of, tokenizer, found = of_texts()
    reading = found.read("The capital of France is a city in", k=2)
    assert isinstance(reading, LensReading) and reading.tokens[:2] == ("The", " capital") and found.table_name == "cp_lrp"
    logits = of(**tokenizer("The capital of France is a city in", return_tensors="pt")).logits[0]
    assert reading.ids[-1, :, 0].tolist() == logits.argmax(-1).tolist()
    frame = reading.to_dataframe()
    count = len(reading.tokens)
    assert len(frame) == 2 * count * 2 and frame["rank"].tolist()[:4] == [1, 2, 1, 2]
    line = frame[(frame["place"] == "residual.1") & (frame["position"] == 3) & (frame["rank"] == 2)].iloc[0]
    assert line["predicted"] == reading.top("residual.1", 3)[1] and line["id"] == reading.ids[1, 3, 1]
    assert line["probability"] == float(reading.probability[1, 3, 1]) and line["token"] == reading.tokens[3]
    shown = str(reading)
    assert "the likeliest next token, rules cp_lrp" in shown and f"the last 6 of {count} positions" in shown
    assert max(map(len, shown.splitlines())) <= 80 and '<table class="listed">' in reading._repr_html_()
    reading.to_html(tmp_path / "lens.html")
    page = (tmp_path / "lens.html").read_text(encoding="utf-8")
    assert "lens: The capital of France is a city in" in page and "the likeliest next token" in page
    for wrong in ("residual.9", 2, -3):
        with pytest.raises(InputError, match=r"LensReading.top: there is no place"):
            reading.top(wrong)
    with pytest.raises(InputError, match="there is no position 40"):
        reading.top(0, 40)


def test_a_picture_has_a_cell_for_each_place_and_position_shaded_by_probability(tmp_path: Path) -> None:
    """A long text goes to several files; the colours of all cells are those of the probabilities, and nothing else is."""
    reading = of_texts()[2].read("The capital of France is Paris, London and Rome: " * 9, k=1)
    assert isinstance(reading, LensReading)
    layers, positions = reading.ids.shape[:2]
    shares = torch.arange(layers * positions).reshape(layers, positions, 1) / (layers * positions)
    paths = replace(reading, probability=shares).to_png(tmp_path / "lens.png", width=5.0)
    assert len(paths) > 1 and [path.stem for path in paths] == ["lens", *(f"lens-{at}" for at in range(2, len(paths) + 1))]
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    assert {each.shape[1] for each in pictures} == {1000} and max(each.shape[0] for each in pictures) <= 2200
    there = {tuple(pixel) for each in pictures for pixel in np.unique(each.reshape(-1, 3), axis=0).tolist()}
    assert all(tuple(bytes.fromhex(SHADE.colour(share)[1:])) in there for share in shares.flatten().tolist())
    with pytest.raises(InputError, match="to_png: width must be at least 4.0 inches, got 3.25"):
        reading.to_png(tmp_path / "small.png", width=3.25)


# Files


def test_a_lens_goes_to_a_file_and_back(tmp_path: Path) -> None:
    of, tokenizer, found = of_texts()
    found.save(tmp_path / "lens.safetensors")
    loaded = Lens.load(tmp_path / "lens.safetensors", of, processor=tokenizer)
    assert torch.equal(loaded.matrices, found.matrices) and loaded.facts == found.facts
    assert "2 prompts, 9 positions" in " ".join(str(loaded).split()) and "cp_lrp" in repr(loaded)
    one, other = loaded.read("Paris is"), found.read("Paris is")
    assert isinstance(one, LensReading) and isinstance(other, LensReading) and torch.equal(one.ids, other.ids)
    alone = Lens.load(tmp_path / "lens.safetensors")
    with pytest.raises(InputError, match="a loaded lens needs the model"):
        alone.read("Paris is")
    changed = copy.deepcopy(of)
    with torch.no_grad():
        next(changed.parameters())[0, 0] += 1
    with pytest.raises(InputError, match="this lens was made of a LlamaForCausalLM with other weights or layers"):
        alone.read("Paris is", model=changed, processor=tokenizer)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 9}, "has format 9, and this version of lxt_fx reads 1"),
        ({"places": ["residual.0"]}, "are not those of a residual stream"),
        ({"places": ["residual.0", "residual.2"]}, "are not those of a residual stream"),
        ({"places": ["residual.0", "residual.1", "residual.2"]}, r"has matrices \[1, 2, 2\] for 3 places"),
        ({"prompts": 0}, "it must be from 1"),
        ({"weights": 3}, "weights must be a text"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    facts = {
        "format": 1, "model_class": "A", "checkpoint": "", "weights": "0", "table_name": "gradient",
        "places": ["residual.0", "residual.1"], "prompts": 1, "positions": 1,
    }  # fmt: skip
    save_file({"matrices": torch.eye(2)[None]}, tmp_path / "a.safetensors", metadata={"lxt_fx_lens": json.dumps(facts)})
    assert Lens.load(tmp_path / "a.safetensors").layers == 1
    header = {"lxt_fx_lens": json.dumps(facts | change)}
    save_file({"matrices": torch.eye(2)[None]}, tmp_path / "b.safetensors", metadata=header)
    with pytest.raises(InputError, match=f"^Lens.load: b.safetensors.*{said}"):
        Lens.load(tmp_path / "b.safetensors")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="x.safetensors holds no lens"):
        Lens.load(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_text("no")
    with pytest.raises(InputError, match="y.safetensors cannot be read"):
        Lens.load(tmp_path / "y.safetensors")


# Refusals


def test_what_the_lens_cannot_read_is_refused() -> None:
    with pytest.raises(InputError, match="^lens: a Jacobian is a gradient, and in explicit form"):
        lxt_fx.lens(lxt_fx.transform(model(), form="explicit"), PROMPTS[0])
    with pytest.raises(InputError, match="^lens: this module was made to answer at the positions"):
        lxt_fx.lens(lxt_fx.transform(model(), positions="last"), PROMPTS[0])
    with pytest.raises(InputError, match="^lens: a position depends on later ones, so this is no causal language model"):
        lxt_fx.lens(hf.BertForMaskedLM(hf.BertConfig(**tiny.SIZES)).eval(), PROMPTS[0], rules="gradient")
    with pytest.raises(InputError, match="^lens: the lens reads texts of a language model without an encoder"):
        lxt_fx.lens(tiny.vit(), torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"positions": slice(3, None)}, r"positions=slice\(3, None, None\) holds none of the 2 tokens of text 1"),
        ({"positions": 3}, "text 1.* position"),
        ({"inputs": []}, "there is no prompt to average over"),
        ({"batch": 0}, "batch must be a whole number of at least 1"),
        ({"chunk": 0}, "chunk must be a whole number of at least 1"),
    ],
)
def test_positions_and_sizes_that_do_not_fit_are_refused(how: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^lens: .*{said}"):
        lxt_fx.lens(explained("gradient"), **{"inputs": PROMPTS, **how})


def test_a_model_that_was_trained_since_is_not_read(tmp_path: Path) -> None:
    """The matrices are those of the weights before: the same module has others now."""
    of = copy.deepcopy(model())
    module = lxt_fx.transform(of, rules="gradient")
    found = lxt_fx.lens(module, PROMPTS)
    assert isinstance(found.read(PROMPTS[0]), LensReading)
    with torch.no_grad():
        of.transformer.h[1].mlp.c_fc.weight.mul_(1.1)
    with pytest.raises(
        InputError, match="^Lens.read: this lens was made of a GPT2LMHeadModel with other weights or layers"
    ):
        found.read(PROMPTS[0])


def test_logits_that_are_not_finite_are_an_error() -> None:
    half = copy.deepcopy(model()).half()
    found = lxt_fx.lens(half, PROMPTS, rules="gradient")
    found.matrices[1] *= 1e9
    with pytest.raises(lxt_fx.NonFiniteError, match="^Lens.read: the logits of residual.1 are not finite: .*; try a wider"):
        found.read(PROMPTS[0])


def test_a_lens_does_not_depend_on_autocast() -> None:
    single = lxt_fx.transform(tiny.gpt2(), rules="gradient")
    plain = lxt_fx.lens(single, PROMPTS)
    said = plain.read(PROMPTS[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lxt_fx.lens(single, PROMPTS).matrices, plain.matrices)
        assert torch.equal(plain.read(PROMPTS[0]).logits, said.logits)


@pytest.mark.parametrize("k", [0, 65, 2.0])
def test_a_number_of_tokens_that_there_is_not_is_refused(k: Any) -> None:
    with pytest.raises(InputError, match="^Lens.read: k must be a whole number from 1 to 64"):
        lxt_fx.lens(explained("gradient"), [7]).read([7], k=k)


def test_a_matrix_that_is_not_finite_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from lxt_fx.inside.lens import residuals as module

    backward = many_targets.backward

    def broken(*args: Any) -> list[Tensor]:
        first, *rest = backward(*args)
        return [first, *(each * torch.inf for each in rest)]

    monkeypatch.setattr(module, "backward", broken)
    with pytest.raises(lxt_fx.NonFiniteError, match="^lens: the matrix of residual.1 is not finite"):
        lxt_fx.lens(explained("gradient"), PROMPTS[0])
