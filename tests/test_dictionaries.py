"""`Dictionary`: the formulas of its kinds in other code, the files of SAELens, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_splice import FEATURES, KINDS, WIDTH, dictionary, written_by_hand
from torch import Tensor

import lxt_fx

X = torch.randn(3, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(11))


def reconstructed(found: lxt_fx.Dictionary, x: Tensor) -> Tensor:
    return found.decode(found.encode(x), x)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_features_and_reconstruction_are_those_of_the_formulas(kind: str, center: bool) -> None:
    found = dictionary(kind, center=center)
    features, reconstruction = written_by_hand(found, X)
    torch.testing.assert_close(found.encode(X), features)
    torch.testing.assert_close(reconstructed(found, X), reconstruction)
    assert found.features == FEATURES and found.width == found.width_written == WIDTH
    if kind == "topk":
        assert int((found.encode(X) > 0).sum(-1).max()) == 5


def test_a_rescaled_dictionary_sees_vectors_of_one_length() -> None:
    found = dictionary("relu", rescale=True)
    length = X.norm(dim=-1, keepdim=True) / WIDTH**0.5
    plain = dictionary("relu")
    torch.testing.assert_close(reconstructed(found, X), reconstructed(plain, X / length) * length)
    torch.testing.assert_close(reconstructed(found, 7 * X), 7 * reconstructed(found, X))
    zero = torch.zeros(WIDTH, dtype=torch.float64)  # the embedding of a padding token
    torch.testing.assert_close(found.encode(zero), plain.encode(zero))
    assert torch.equal(reconstructed(found, zero), zero)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dictionary_is_the_same_after_save_and_load(kind: str, tmp_path: Path) -> None:
    found = dictionary(kind, center=True, about="a model", place="blocks.1.hook_resid_pre")
    found.save(tmp_path)
    loaded = lxt_fx.Dictionary.load(tmp_path)
    assert (loaded.about, loaded.place) == (found.about, found.place)
    assert loaded.kind == ("jump_relu" if kind == "batch_topk" else kind)
    for name in set(found.tensors) - {"threshold"}:
        assert torch.equal(loaded.tensors[name], found.tensors[name])
    torch.testing.assert_close(loaded.encode(X), found.encode(X))
    torch.testing.assert_close(reconstructed(loaded, X), reconstructed(found, X))


@pytest.mark.parametrize("kind", ["relu", "jump_relu"])
def test_a_transcoder_is_the_same_after_save_and_load(kind: str, tmp_path: Path) -> None:
    skip = {"W_skip": torch.linspace(-1, 1, 20 * WIDTH).reshape(20, WIDTH)} if kind == "relu" else {}
    found = dictionary(kind, written=20, **skip)
    found.save(tmp_path)
    loaded = lxt_fx.Dictionary.load(tmp_path)
    assert loaded.width_written == 20 and not loaded.center
    torch.testing.assert_close(reconstructed(loaded, X), reconstructed(found, X))


def test_the_file_is_what_saelens_reads(tmp_path: Path) -> None:
    """Names, shapes and orientation as its own `save_model` writes them; a threshold for each feature."""
    dictionary("batch_topk", torch.float32, center=True).save(tmp_path)
    config, tensors = json.loads((tmp_path / "cfg.json").read_text()), load_file(tmp_path / "sae_weights.safetensors")
    assert {name: tuple(found.shape) for name, found in tensors.items()} == {
        "W_enc": (WIDTH, FEATURES), "W_dec": (FEATURES, WIDTH), "b_enc": (FEATURES,), "b_dec": (WIDTH,),
        "threshold": (FEATURES,),
    }  # fmt: skip
    assert config["architecture"] == "jumprelu" and config["apply_b_dec_to_input"] is True
    assert (config["d_in"], config["d_sae"], config["dtype"]) == (WIDTH, FEATURES, "float32")


def written(folder: Path, config: dict[str, Any], **tensors: Tensor) -> Path:
    """A folder as SAELens writes it."""
    sizes = {"d_in": WIDTH, "d_sae": FEATURES}
    (folder / "cfg.json").write_text(json.dumps(sizes | config))
    draw = torch.Generator().manual_seed(1)
    given = {
        "W_enc": torch.randn(WIDTH, FEATURES, generator=draw, dtype=torch.float64),
        "W_dec": torch.randn(FEATURES, WIDTH, generator=draw, dtype=torch.float64),
        "b_enc": torch.randn(FEATURES, generator=draw, dtype=torch.float64),
        "b_dec": torch.randn(WIDTH, generator=draw, dtype=torch.float64),
    }
    given |= tensors
    save_file({name: found for name, found in given.items() if found.numel()}, folder / "sae_weights.safetensors")
    return folder


def test_files_of_older_versions_are_read(tmp_path: Path) -> None:
    """Before version 6 all settings stood side by side under other names, and k in the arguments of the activation."""
    old = {
        "hook_point": "blocks.2.hook_resid_pre", "model_name": "gpt2", "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 4}, "normalize_activations": False, "finetuning_scaling_factor": False,
    }  # fmt: skip
    found = lxt_fx.Dictionary.load(written(tmp_path, old, scaling_factor=torch.ones(FEATURES, dtype=torch.float64)))
    assert (found.kind, found.k, found.center) == ("topk", 4, True)
    assert (found.about, found.place) == ("gpt2", "blocks.2.hook_resid_pre")


def test_the_scale_of_the_activations_goes_into_the_weights(tmp_path: Path) -> None:
    folder = written(tmp_path, {"architecture": "standard", "normalize_activations": "expected_average_only_in"})
    with pytest.raises(lxt_fx.InputError, match="the file does not hold; give it"):
        lxt_fx.Dictionary.load(folder)
    scaled = lxt_fx.Dictionary.load(folder, scale=0.25)
    (tmp_path / "cfg.json").write_text(json.dumps({"architecture": "standard"}))
    plain = lxt_fx.Dictionary.load(folder)
    torch.testing.assert_close(reconstructed(scaled, X), reconstructed(plain, X * 0.25) / 0.25)


def test_features_that_were_chosen_by_the_length_of_their_directions(tmp_path: Path) -> None:
    """`rescale_acts_by_decoder_norm`: the k largest of z |d|, and f / |d| times d."""
    folder = written(tmp_path, {"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": True})
    found, t = lxt_fx.Dictionary.load(folder), load_file(folder / "sae_weights.safetensors")
    norm = t["W_dec"].norm(dim=-1)
    z = ((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norm
    f = torch.where(z >= z.sort(-1).values[..., -4:-3], z, 0).relu()
    torch.testing.assert_close(found.encode(X), f)
    torch.testing.assert_close(reconstructed(found, X), (f / norm) @ t["W_dec"] + t["b_dec"])


def test_a_threshold_is_one_of_the_lengths_in_training(tmp_path: Path) -> None:
    """Both in one file: s x is read, features are z |d| with the d of training, and the threshold is one of these."""
    config = {"architecture": "batchtopk", "rescale_acts_by_decoder_norm": True}
    limit = torch.tensor(0.4, dtype=torch.float64)
    folder = written(tmp_path, config | {"normalize_activations": "expected_average_only_in"}, topk_threshold=limit)
    found, t = lxt_fx.Dictionary.load(folder, scale=3.0), load_file(folder / "sae_weights.safetensors")
    norm = t["W_dec"].norm(dim=-1)
    z = ((3 * X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norm
    f = torch.where(z > limit, z, 0)
    torch.testing.assert_close(found.encode(X), f)
    torch.testing.assert_close(reconstructed(found, X), ((f / norm) @ t["W_dec"] + t["b_dec"]) / 3)


def test_a_direction_of_no_length_has_a_feature_of_0(tmp_path: Path) -> None:
    directions = torch.randn(FEATURES, WIDTH, dtype=torch.float64)
    directions[3] = 0
    config = {"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": True}
    found = lxt_fx.Dictionary.load(written(tmp_path, config, W_dec=directions))
    assert not found.encode(X)[..., 3].any() and found.encode(X).any()


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    both = torch.eye(4)
    lxt_fx.Dictionary(both, both).save(tmp_path)
    assert torch.equal(lxt_fx.Dictionary.load(tmp_path).tensors["W_dec"], both)


def test_what_the_format_cannot_say_is_not_written(tmp_path: Path) -> None:
    square, bias = torch.eye(4), torch.ones(4)
    with pytest.raises(lxt_fx.InputError, match="no transcoder that subtracts b_dec"):
        lxt_fx.Dictionary(square, square, b_dec=bias, W_skip=square, center=True).save(tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(lxt_fx.InputError, match="there is a file of this name"):
        lxt_fx.Dictionary(square, square).save(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_training_checkpoints_hold_other_thresholds(tmp_path: Path) -> None:
    log = torch.linspace(-2, 0, FEATURES, dtype=torch.float64)
    jump = lxt_fx.Dictionary.load(written(tmp_path, {"architecture": "jumprelu"}, log_threshold=log))
    torch.testing.assert_close(jump.tensors["threshold"], log.exp())
    one = torch.tensor(0.5, dtype=torch.float64)
    batch = lxt_fx.Dictionary.load(written(tmp_path, {"architecture": "batchtopk", "k": 4}, topk_threshold=one))
    assert batch.kind == "batch_topk" and float(batch.tensors["threshold"]) == 0.5


EMPTY = torch.zeros(0)
BAD_FILES: dict[str, tuple[dict[str, Any], dict[str, Tensor], str]] = {
    "missing tensor": ({}, {"b_enc": EMPTY}, "lacks b_enc"),
    "other tensor": ({}, {"W_more": torch.ones(2)}, "has W_more"),
    "width": ({"d_in": 31}, {}, r"says d_in = 31, and W_enc is \[32, 48\]"),
    "shape": ({}, {"b_enc": torch.zeros(47, dtype=torch.float64)}, r"b_enc is \[47\]"),
    "NaN": ({}, {"b_dec": torch.full((WIDTH,), torch.nan, dtype=torch.float64)}, "b_dec has 32 entries that are NaN"),
    "dtype": ({}, {"b_dec": torch.zeros(WIDTH)}, "b_dec is float32 on cpu, and W_enc is float64"),
    "architecture": ({"architecture": "crosscoder"}, {}, "architecture 'crosscoder' is not known"),
    "normalised": ({"normalize_activations": "layer_norm"}, {}, "normalize_activations is 'layer_norm'"),
    "activation": ({"activation_fn_str": "tanh-relu"}, {}, "activation_fn is 'tanh-relu'"),
    "scaling": ({"finetuning_scaling_factor": True}, {}, "finetuning_scaling_factor is set"),
    "transcoder": ({"architecture": "transcoder", "apply_b_dec_to_input": True}, {}, "a transcoder's b_dec"),
    "k": ({"architecture": "topk", "k": 49}, {}, "k must be a whole number from 1 to the 48 features, got 49"),
    "arguments": ({"activation_fn": "topk", "activation_fn_kwargs": [4]}, {}, "kind 'topk' needs k"),
    "rescaled transcoder": (
        {"architecture": "transcoder", "apply_b_dec_to_input": False, "normalize_activations": "constant_norm_rescale"}, {},
        "changes what a transcoder reads and not what it writes",
    ),
    "bias as text": ({"apply_b_dec_to_input": "false"}, {}, "apply_b_dec_to_input must be true or false, got 'false'"),
    "length": ({"rescale_acts_by_decoder_norm": True}, {}, "which architecture 'standard' does not have"),
    "length of a vector": (
        {"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": True}, {"W_dec": torch.zeros(WIDTH)},
        "W_dec must have two dimensions",
    ),
    "reshaped": ({"reshape_activations": "flat"}, {}, "reshape_activations is 'flat'"),
    "no k": ({"architecture": "topk"}, {}, "kind 'topk' needs k"),
    "centered": (
        {"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}}, {}, "weights were changed first"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_followed_is_refused(name: str, tmp_path: Path) -> None:
    config, tensors, said = BAD_FILES[name]
    with pytest.raises(lxt_fx.InputError, match=said):
        lxt_fx.Dictionary.load(written(tmp_path, config, **tensors))


def test_a_folder_without_a_dictionary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(lxt_fx.InputError, match=r"cfg\.json cannot be read"):
        lxt_fx.Dictionary.load(tmp_path)
    (tmp_path / "cfg.json").write_text("[1]")
    with pytest.raises(lxt_fx.InputError, match="must hold an object"):
        lxt_fx.Dictionary.load(tmp_path)
    (tmp_path / "cfg.json").write_text("{}")
    (tmp_path / "sae_weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(lxt_fx.InputError, match=r"sae_weights\.safetensors cannot be read"):
        lxt_fx.Dictionary.load(tmp_path)


BAD_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kind": "relu6"}, "kind must be one of relu, topk"),
    "ints": ({"b_enc": torch.zeros(FEATURES, dtype=torch.long)}, "b_enc must be a tensor of floats"),
    "list": ({"b_enc": [0.0] * FEATURES}, "b_enc must be a tensor of floats, got list"),
    "scalar": ({"W_enc": torch.tensor(1.0), "kind": "topk", "k": 1}, "W_enc must have two dimensions"),
    "float8": ({"W_enc": torch.zeros(WIDTH, FEATURES).to(torch.float8_e4m3fn)}, "W_enc must be a tensor of floats"),
    "sparse": ({"W_enc": torch.zeros(WIDTH, FEATURES).to_sparse()}, "W_enc is sparse"),
    "empty": ({"W_enc": torch.zeros(WIDTH, 0), "W_dec": torch.zeros(0, WIDTH)}, "so there are no features"),
    "bool": ({"kind": "batch_topk", "threshold": True}, "threshold must be a tensor of floats, got bool"),
    "skip": ({"W_skip": torch.zeros(WIDTH, WIDTH), "rescale": True}, "W_skip is of a transcoder"),
    "dims": ({"W_enc": torch.zeros(WIDTH)}, "W_enc must have two dimensions"),
    "other": ({"threshold": 0.1}, "kind 'relu' has no threshold"),
    "threshold": ({"kind": "jump_relu", "threshold": torch.zeros(5)}, r"threshold is \[5\]"),
    "bias": ({"b_dec": torch.zeros(5)}, r"b_dec is \[5\]"),
    "center": ({"b_dec": None, "center": True}, "needs a b_dec"),
    "rescale": ({"W_dec": torch.zeros(FEATURES, 5), "b_dec": None, "rescale": True}, "write what they read"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_make_no_dictionary_are_refused(name: str) -> None:
    given, said = BAD_TENSORS[name]
    good = {"W_enc": torch.zeros(WIDTH, FEATURES), "W_dec": torch.zeros(FEATURES, WIDTH), "b_dec": torch.zeros(WIDTH)}
    with pytest.raises(lxt_fx.InputError, match=said):
        lxt_fx.Dictionary(**{**good, **given})


def test_a_dictionary_has_a_gradient_also_if_it_was_read_in_inference_mode(tmp_path: Path) -> None:
    given = torch.randn(WIDTH, FEATURES), torch.randn(FEATURES, WIDTH)
    with torch.inference_mode():
        made = torch.eye(4)
        found = lxt_fx.Dictionary.load(written(tmp_path, {"architecture": "standard"}))
        moved, one = found.to(torch.float32), lxt_fx.Dictionary(*given, kind="batch_topk", threshold=0.2)
    for each in (found, moved, one):
        x = torch.ones(WIDTH, dtype=each.dtype, requires_grad=True)
        reconstructed(each, x).sum().backward()
        assert x.grad is not None and x.grad.any()
    with pytest.raises(lxt_fx.InputError, match=r"W_enc was made in torch.inference_mode\(\)"):
        lxt_fx.Dictionary(made, made)


def test_values_of_another_width_are_refused() -> None:
    found = dictionary("relu")
    with pytest.raises(lxt_fx.InputError, match=r"x must be \[..., 32\], got \[3, 5, 31\]"):
        found.encode(X[..., 1:])
    with pytest.raises(lxt_fx.InputError, match=r"features must be \[..., 48\], got \[3, 5, 32\]"):
        found.decode(X, X)


def test_it_says_what_it_is_and_moves_to_another_dtype() -> None:
    found = dictionary("topk", about="SmolLM2", place="blocks.12")
    assert repr(found) == "Dictionary(topk, k=5, 32 -> 48 features -> 32, SmolLM2, blocks.12)"
    narrow = found.to(torch.float32)
    assert narrow.dtype is torch.float32 and found.dtype is torch.float64 and narrow.k == 5
