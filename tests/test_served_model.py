"""The model behind the live explorer: units that are switched off for a question, and questions about pictures."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch
import transformers
from kept_net import captures_counted
from torch import Tensor

import lxt_fx
from lxt_fx.base.errors import InputError, LxtFxError
from lxt_fx.base.progress import told
from lxt_fx.compiler.kept_captures import forget_captures
from lxt_fx.compiler.steered_module import STEERING
from lxt_fx.explorer.server import asked_picture
from lxt_fx.explorer.server.asked import read_asked
from lxt_fx.explorer.server.jobs import Cancelled, Jobs
from lxt_fx.explorer.server.served_model import Answered, ServedModel

Image = pytest.importorskip("PIL.Image")

TEXT = "The capital of France is"
PIXELS = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
OFF = {"mlp.0.neurons": {"units": [3, 17], "scale": 0}}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_text.byte_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return tiny_text.llama_of_neurons(len(tokenizer))


@pytest.fixture(scope="module")
def served(model: Any, tokenizer: Any) -> ServedModel:
    return ServedModel(model, tokenizer)


def ask(served: ServedModel, **question: Any) -> Answered:
    whole = {"kind": "explain", "text": TEXT, "rules": "attnlrp", **question}
    return served.answer(read_asked(json.dumps(whole)))


def read(array: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["data"]), "<f4").reshape(array["shape"])


@contextmanager
def by_hand(model: Any, change: Any) -> Iterator[None]:
    """The model with its neurons changed by a hook of torch."""
    hook = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda module, args: (change(args[0]),))
    try:
        yield
    finally:
        hook.remove()


def multiplied(factor: float, *units: int) -> Any:
    def change(neurons: Tensor) -> Tensor:
        changed = neurons.clone()
        changed[..., list(units)] *= factor
        return changed

    return change


def logits(model: Any, tokenizer: Any) -> Tensor:
    found: Tensor = model(**tokenizer(TEXT, return_tensors="pt")).logits[0, -1].detach().double()
    return found


def as_logits(candidates: list[dict[str, Any]]) -> dict[int, float]:
    return {each["id"]: each["logit"] for each in candidates}


# steering


def test_units_that_are_off_change_the_answer_as_a_hook_does(served: ServedModel, model: Any, tokenizer: Any) -> None:
    own = logits(model, tokenizer)
    with by_hand(model, multiplied(0.0, 3, 17)):
        changed = logits(model, tokenizer)
    assert (own - changed).abs().max() > 0.01, "the units must matter, or nothing is tested"
    target = int(own.argmax())
    found = ask(served, steer=OFF, target=f"id:{target}", account=True, latent=True)
    before, after = as_logits(found.before or []), as_logits(found.candidates)
    assert set(before) == set(after) and 10 <= len(after) <= 20, "both columns have the same tokens"
    assert before == pytest.approx({token: float(own[token]) for token in before}, rel=1e-4)
    assert after == pytest.approx({token: float(changed[token]) for token in after}, rel=1e-4)
    assert list(after.values()) == sorted(after.values(), reverse=True)
    result = found.result
    assert result["numbers"][0]["value"] == pytest.approx(float(changed[target]), rel=1e-4)
    assert result["steered"] == [{"place": "mlp.0.neurons", "units": [3, 17], "scale": 0}]
    assert result["account"]["value"] == pytest.approx(float(changed[target]), rel=1e-4)
    units = {unit["unit"]: unit for unit in result["latent"]["units"] if unit["place"] == "mlp.0.neurons"}
    assert not any(abs(units[unit]["relevance"]) > 1e-6 for unit in (3, 17) if unit in units)


@pytest.mark.parametrize("change, edit", [(2.5, {"scale": 2.5}), (None, {"value": 1.5})], ids=["scaled", "set"])
def test_units_are_scaled_or_set(served: ServedModel, model: Any, tokenizer: Any, change: Any, edit: Any) -> None:
    def setting(neurons: Tensor) -> Tensor:
        changed = neurons.clone()
        changed[..., 5] = 1.5
        return changed

    with by_hand(model, setting if change is None else multiplied(change, 5)):
        changed = logits(model, tokenizer)
    found = as_logits(ask(served, steer={"mlp.0.neurons": {"units": [5], **edit}}, rules="cp_lrp").candidates)
    assert found == pytest.approx({token: float(changed[token]) for token in found}, rel=1e-4)


def test_heads_and_several_edits_of_a_place(served: ServedModel) -> None:
    """A head that is off is as that head at 0, and edits of one place follow one another."""
    off = ask(served, steer={"attention.0.heads": {"units": [1], "scale": 0}})
    zero = ask(served, steer={"attention.0.heads": {"units": [1], "value": 0}})
    assert as_logits(off.candidates) == pytest.approx(as_logits(zero.candidates), rel=1e-5)
    assert as_logits(off.candidates) != as_logits(off.before or [])
    there_and_back = ask(served, steer={"attention.0.heads": [{"units": [1], "scale": 2}, {"units": [1], "scale": 0.5}]})
    assert as_logits(there_and_back.candidates) == pytest.approx(as_logits(there_and_back.before or []), rel=1e-5)
    assert [one["scale"] for one in there_and_back.result["steered"]] == [2, 0.5]


def test_the_answer_is_that_of_the_steered_model(served: ServedModel, model: Any, tokenizer: Any) -> None:
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    off = {"mlp.0.neurons": {"scale": -6}}
    with by_hand(model, lambda neurons: -6 * neurons):
        steered = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
    plain = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
    found = ask(served, steer=off, answer_tokens=4)
    assert steered != plain and found.result["parts"][0]["ids"][ids.shape[1] :] == steered
    again = ask(served, answer_tokens=4)
    assert again.result["parts"][0]["ids"][ids.shape[1] :] == plain and again.before is None and not again.result["steered"]


@pytest.mark.parametrize(
    "steer, why",
    [
        ({"mlp.7.neurons": {"scale": 0}}, "mlp.0.neurons"),
        ({"mlp.0.neurons": {"units": [64], "scale": 0}}, "has no unit 64; it has 64"),
        ({"mlp.0.neurons": {"units": [1, 1], "scale": 0}}, "named twice"),
        ({"mlp.0.neurons": {"units": [1], "value": 1e300}}, "beyond what"),
        ({"%no_node": {"scale": 0}}, "no_node"),
    ],
    ids=str,
)
def test_what_cannot_be_steered_says_why_and_leaves_the_model_as_it_was(served: ServedModel, steer: Any, why: str) -> None:
    before = ask(served)
    with pytest.raises(LxtFxError, match=why):
        ask(served, steer=steer)
    assert not STEERING.get()
    assert ask(served).candidates == before.candidates


def test_nothing_stays_steered_when_a_question_fails_or_is_cancelled_in_the_middle(served: ServedModel, model: Any) -> None:
    before, parameters = ask(served), {name: value.clone() for name, value in model.state_dict().items()}
    seen = list[int]()

    def stop(steps: Any) -> None:
        if STEERING.get():
            seen.append(len(steps))
            raise Cancelled

    with pytest.raises(Cancelled), told(stop):
        ask(served, steer=OFF)
    with pytest.raises(InputError, match="99"):
        ask(served, steer=OFF, position=99)
    assert seen, "the question was cancelled while the model was steered"
    assert not STEERING.get()
    after = ask(served)
    assert after.candidates == before.candidates
    assert np.array_equal(read(after.result["parts"][0]["values"]), read(before.result["parts"][0]["values"]))
    assert all(torch.equal(parameters[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_steered_question_of_one_tab_does_not_reach_the_next_in_the_queue(served: ServedModel) -> None:
    jobs, alone = Jobs(), ask(served)
    try:
        questions = [{"steer": OFF}, {}, {"steer": {"mlp.9.neurons": {"scale": 0}}}, {}]
        found = [jobs.add(lambda question=question: ask(served, **question))[0] for question in questions]
        jobs._worker.join(0)
        while (looks := [jobs.look(job) for job in found]) and any(
            look is None or look["state"] in ("waiting", "running") for look in looks
        ):
            jobs._worker.join(0.01)
        steered, plain, failed, last = (look or {} for look in looks)
    finally:
        jobs.end(5)
    assert steered["before"] is not None and plain["before"] is None and failed["error"]["kind"] == "UnknownNameError"
    assert plain["candidates"] == alone.candidates == last["candidates"] != steered["candidates"]


def test_one_graph_answers_with_and_without_changes(served: ServedModel) -> None:
    forget_captures()
    with captures_counted() as captured:
        for steer in ({}, OFF, {"attention.0.heads": {"scale": 0}}, {}):
            ask(served, steer=steer)
    assert len(captured) == 1


def test_classes_are_steered_too() -> None:
    words = tiny_text.word_tokenizer()
    served = ServedModel(tiny_text.bert("classifier", len(words)), words)
    found = ask(served, text="play playing", steer={"mlp.0.neurons": {"scale": 0}})
    assert {each["token"] for each in found.before or []} == {"bad", "fair", "good"}
    assert as_logits(found.candidates) != as_logits(found.before or [])


# pictures


def url(pixels: np.ndarray = PIXELS, kind: str = "png") -> str:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, kind)
    return f"data:image/{kind};base64," + base64.b64encode(written.getvalue()).decode()


@pytest.fixture(scope="module")
def looking() -> ServedModel:
    return ServedModel(tiny_text.vit(), transformers.ViTImageProcessor(size={"height": 8, "width": 8}))


def test_a_picture_is_explained_as_explain_does(looking: ServedModel) -> None:
    assert looking.live()["asks"] == ["image"]
    found = ask(looking, text=None, image=url(), account=True)
    alone = lxt_fx.explain(looking.module, looking.processor, Image.fromarray(PIXELS), account=True)
    (part,) = found.result["parts"]
    assert part["kind"] == "image" and found.result["numbers"][0]["said"] == alone.explained
    assert read(part["values"]).sum() == pytest.approx(float(alone.relevance.sum()), rel=1e-3)
    inputs = looking.processor(images=Image.fromarray(PIXELS), return_tensors="pt")
    scores = looking.module(**inputs).logits[0].detach()
    assert as_logits(found.candidates) == pytest.approx(dict(enumerate(scores.tolist())), rel=1e-4)
    off = ask(looking, text=None, image=url(), steer={"mlp.0.neurons": {"scale": 0}})
    assert as_logits(off.before or []) == pytest.approx(as_logits(found.candidates), rel=1e-5)
    assert as_logits(off.candidates) != as_logits(found.candidates)


def test_every_format_is_decoded_and_stands_upright(looking: ServedModel) -> None:
    for kind in ("png", "jpeg", "webp"):
        found = read_asked(json.dumps({"kind": "explain", "rules": "attnlrp", "image": url(kind=kind)})).given
        assert found.size == (30, 20) and found.mode == "RGB"
    written, turned = io.BytesIO(), Image.Exif()
    turned[0x0112] = 6  # lies on its side
    Image.fromarray(PIXELS).save(written, "jpeg", exif=turned)
    data = "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode()
    assert read_asked(json.dumps({"kind": "explain", "rules": "attnlrp", "image": data})).given.size == (20, 30)


def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(data: str) -> str:
        with pytest.raises(InputError) as error:
            read_asked(json.dumps({"kind": "explain", "rules": "attnlrp", "image": data}))
        return str(error.value)

    def decoded(*given: Any, **more: Any) -> Any:
        raise AssertionError("pixels were decoded")

    bomb = url(np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setattr(asked_picture, "MOST_PIXELS", 63)
    monkeypatch.setattr(Image.Image, "convert", decoded)
    assert "8 x 8 pixels; 63 is the most" in refused(bomb)
    monkeypatch.setattr(asked_picture, "MOST_BYTES", 10)
    assert "is the most" in refused(bomb)
    monkeypatch.undo()
    cut = base64.b64encode(base64.b64decode(url().partition(",")[2])[:200]).decode()
    assert "cannot be read as PNG" in refused(f"data:image/png;base64,{cut}")
    assert "cannot be read as JPEG" in refused(url().replace("image/png", "image/jpeg"))


def test_a_model_says_what_it_does_not_read(served: ServedModel, looking: ServedModel) -> None:
    with pytest.raises(InputError, match="reads no pictures"):
        ask(served, image=url())
    with pytest.raises(InputError, match="reads no text"):
        ask(looking, text="/etc/hostname")
    with pytest.raises(InputError, match="reads no text"):
        ask(looking, image=url())


def llava() -> ServedModel:
    """A tiny model of texts with pictures."""
    torch.manual_seed(0)
    tokenizer = tiny_text.byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.image_token, tokenizer.image_token_id = "<image>", tokenizer.convert_tokens_to_ids("<image>")
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=8, patch_size=4, **small),
        text_config=transformers.LlamaConfig(vocab_size=len(tokenizer), **small), image_token_id=tokenizer.image_token_id,
        vision_feature_layer=-1,
    )  # fmt: skip
    template = (
        "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}), tokenizer,
        patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip
    return ServedModel(transformers.LlavaForConditionalGeneration(config).eval(), processor)


def test_a_chat_with_a_picture_shows_both_and_writes_an_answer() -> None:
    served = llava()
    assert set(served.live()["asks"]) == {"text", "chat", "answer", "image"}
    chat = [{"role": "user", "content": TEXT}]
    found = ask(served, text=None, chat=chat, image=url())
    assert {part["kind"] for part in found.result["parts"]} == {"text", "image"} and found.result["title"] == TEXT
    content = [{"type": "image", "image": Image.fromarray(PIXELS)}, {"type": "text", "text": TEXT}]
    alone = lxt_fx.explain(served.module, served.processor, [{"role": "user", "content": content}])
    assert found.result["numbers"][0]["value"] == pytest.approx(alone.value, rel=1e-4)
    assert found.candidates[0]["logit"] == pytest.approx(alone.value, rel=1e-4)
    inputs = served._given(read_asked(json.dumps(
        {"kind": "explain", "rules": "attnlrp", "chat": chat, "image": url()}
    ))).inputs  # fmt: skip
    text = next(part for part in found.result["parts"] if part["kind"] == "text")
    assert found.positions == len(text["ids"]) < inputs["input_ids"].shape[1]
    early = ask(served, text=None, chat=chat, image=url(), position=0)
    assert next(part for part in early.result["parts"] if part["kind"] == "text")["read"] == 1
    column = inputs["input_ids"][0].tolist().index(text["ids"][0])
    best = float(served.module(**inputs).logits[0, column].detach().max())
    assert column > 0, "tokens that stand for the picture are before it"
    assert early.result["numbers"][0]["value"] == pytest.approx(best, rel=1e-4) == early.candidates[0]["logit"]
    written = served.module.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)
    answer = ask(served, text=None, chat=chat, image=url(), answer_tokens=3)
    ids = next(part for part in answer.result["parts"] if part["kind"] == "text")["ids"]
    assert ids[-3:] == written[0, -3:].tolist()
