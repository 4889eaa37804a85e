"""The files of SAELens: `cfg.json` and `sae_weights.safetensors` in a folder. Its package is not needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.base.json_file import write_json

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
FORMAT = "6.18.0"
"""The version of SAELens whose files are written."""

KINDS = {"standard": "relu", "topk": "topk", "batchtopk": "batch_topk", "jumprelu": "jump_relu", "gated": "gated"}
"""The kind of dictionary of each architecture."""

_TRANSCODERS = {"transcoder": "standard", "skip_transcoder": "standard", "jumprelu_transcoder": "jumprelu"}
_TRANSCODER_OF = {
    ("relu", False): "transcoder",
    ("relu", True): "skip_transcoder",
    ("jump_relu", False): "jumprelu_transcoder",
}
"""The architecture of a transcoder by its kind, and whether it has W_skip."""

_OWN = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "batchtopk": ("b_enc", "threshold"),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "r_mag", "b_mag"),
}
"""The tensors of each architecture beside W_enc, W_dec and b_dec."""

_OLD_NAMES = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
_SKIPPED = ("scaling_factor", "finetuning_scaling_factor")
"""Tensors of old files that count only where `finetuning_scaling_factor` is set, which is refused."""


def read_files(folder: Path, scale: float | None) -> dict[str, Any]:
    """The arguments of `Dictionary` for the files in a folder. Raises InputError as `Dictionary.load` does."""
    config = _config(folder)
    named = str(config.get("architecture", "standard"))
    architecture = _TRANSCODERS.get(named, named)
    if architecture not in KINDS:
        _refuse(folder, f"architecture {named!r} is not known; it must be one of {', '.join([*KINDS, *_TRANSCODERS])}")
    _check_settings(folder, config, named)
    factor = _factor(folder, config, scale)
    tensors = _with_thresholds(_tensors(folder))
    _check_names(folder, tensors, architecture, named)
    _check_widths(folder, config, tensors)
    if factor is not None:
        tensors["W_enc"] = tensors["W_enc"] * factor
        tensors |= {name: tensors[name] / factor for name in ("W_dec", "b_dec")}
    if config.get("rescale_acts_by_decoder_norm"):
        norm = tensors["W_dec"].norm(dim=-1)
        tensors |= {name: tensors[name] * norm for name in ("W_enc", "b_enc")}
        tensors["W_dec"] = tensors["W_dec"] / norm[:, None]
    said = config["metadata"]
    return {
        **tensors,
        "kind": KINDS[architecture],
        "k": config.get("k") if architecture == "topk" else None,
        "center": bool(config.get("apply_b_dec_to_input", named not in _TRANSCODERS)),
        "rescale": config.get("normalize_activations") == "constant_norm_rescale",
        "about": str(said.get("model_name") or ""),
        "place": str(said.get("hook_name") or ""),
    }


def write_files(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Writes the files for the arguments of a `Dictionary`. Raises InputError for what the format cannot say."""
    from safetensors.torch import save_file

    tensors = {name: found.detach().contiguous() for name, found in arguments.items() if isinstance(found, Tensor)}
    config = _written(folder, tensors, arguments)
    features = tensors["W_enc"].shape[1]
    like = tensors["W_enc"]
    for name, size in (("b_enc", features), ("b_dec", tensors["W_dec"].shape[1])):
        if name not in tensors and not (name == "b_enc" and arguments["kind"] == "gated"):
            tensors[name] = like.new_zeros(size)
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].expand(features).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    write_json(config, folder / CONFIG)


def _written(folder: Path, tensors: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `cfg.json`."""
    kind = "jump_relu" if arguments["kind"] == "batch_topk" else arguments["kind"]
    architecture = next(name for name, found in KINDS.items() if found == kind)
    transcodes = "W_skip" in tensors or tensors["W_dec"].shape[1] != tensors["W_enc"].shape[0]
    if transcodes:
        skips = "W_skip" in tensors
        architecture = _TRANSCODER_OF.get((kind, skips), "")
        if not architecture:
            _refuse(folder, f"SAELens has no transcoder of kind {kind!r}{' with W_skip' if skips else ''}")
    found: dict[str, Any] = {
        "architecture": architecture,
        "d_in": tensors["W_enc"].shape[0],
        "d_sae": tensors["W_enc"].shape[1],
        "dtype": str(tensors["W_enc"].dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": arguments["center"],
        "normalize_activations": "constant_norm_rescale" if arguments["rescale"] else "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": FORMAT,
            "model_name": arguments["about"] or None,
            "hook_name": arguments["place"] or None,
        },
    }
    if transcodes:
        found["d_out"] = tensors["W_dec"].shape[1]
    return found | ({"k": arguments["k"], "rescale_acts_by_decoder_norm": False} if kind == "topk" else {})


def _config(folder: Path) -> dict[str, Any]:
    """`cfg.json` under the names of version 6."""
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _refuse(folder, f"{CONFIG} cannot be read ({type(error).__name__}: {error})")
    if not isinstance(found, dict):
        _refuse(folder, f"{CONFIG} must hold an object, not a {type(found).__name__}")
    config: dict[str, Any] = {_OLD_NAMES.get(str(name), str(name)): value for name, value in found.items()}
    said = config.get("metadata")
    config["metadata"] = said if isinstance(said, dict) else dict(config)
    if config.get("activation_fn") == "topk":
        config |= {"architecture": "topk", "k": (config.get("activation_fn_kwargs") or {}).get("k")}
    return config


def _check_settings(folder: Path, config: Mapping[str, Any], named: str) -> None:
    """Raises InputError for settings under which the tensors mean something else than is computed here."""
    normalised = config.get("normalize_activations")
    if normalised not in (None, False, True, "none", "expected_average_only_in", "constant_norm_rescale"):
        _refuse(folder, f"normalize_activations is {normalised!r}, which is not computed here")
    if config.get("activation_fn", "relu") not in ("relu", "topk"):
        _refuse(folder, f"activation_fn is {config['activation_fn']!r}, and only relu and topk are known")
    if config.get("finetuning_scaling_factor"):
        _refuse(folder, "finetuning_scaling_factor is set; multiply the directions W_dec by it and write the file again")
    if named in _TRANSCODERS and config.get("apply_b_dec_to_input"):
        _refuse(folder, "apply_b_dec_to_input is set, and a transcoder's b_dec belongs to the place that it writes")
    loaded = config["metadata"].get("model_from_pretrained_kwargs") or {}
    if isinstance(loaded, dict) and loaded.get("center_writing_weights"):
        _refuse(
            folder,
            "it was trained on a model whose weights were changed first (center_writing_weights), so its place holds other "
            "values than yours; subtract the mean over the width from each direction of W_enc and give the tensors to "
            "Dictionary(...)",
        )


def _factor(folder: Path, config: Mapping[str, Any], scale: float | None) -> float | None:
    """What the activations were multiplied by."""
    scaled = config.get("normalize_activations") in (True, "expected_average_only_in")
    if scaled and scale is None:
        _refuse(
            folder,
            "its activations were multiplied by a number in training (normalize_activations: expected_average_only_in), "
            f"which the file does not hold; give it: Dictionary.load({str(folder)!r}, scale=...), sqrt(width) / mean |h|",
        )
    if scale is not None and not scaled:
        _refuse(folder, "scale is for files with normalize_activations: expected_average_only_in, and this is none")
    if scale is not None and not 0 < scale < float("inf"):
        _refuse(folder, f"scale must be a positive number, got {scale}")
    return scale


def _tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, ValueError) as error:
        _refuse(folder, f"{WEIGHTS} cannot be read ({type(error).__name__}: {error})")
    return {name: tensor for name, tensor in found.items() if name not in _SKIPPED}


def _with_thresholds(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Training checkpoints hold the logarithm of thresholds, or one threshold in float64."""
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if "topk_threshold" in tensors and "W_enc" in tensors:
        tensors["threshold"] = tensors.pop("topk_threshold").to(tensors["W_enc"].dtype)
    return tensors


def _check_names(folder: Path, tensors: Mapping[str, Tensor], architecture: str, named: str) -> None:
    wanted = {"W_enc", "W_dec", "b_dec", *_OWN[architecture], *(["W_skip"] if named == "skip_transcoder" else [])}
    if missing := sorted(wanted - tensors.keys()):
        _refuse(folder, f"{WEIGHTS} lacks {', '.join(missing)}, which architecture {named!r} has")
    if unknown := sorted(tensors.keys() - wanted):
        _refuse(folder, f"{WEIGHTS} has {', '.join(unknown)}, which architecture {named!r} does not have")


def _check_widths(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """The sizes that `cfg.json` states are those of the tensors."""
    sizes = {"d_in": ("W_enc", 0), "d_sae": ("W_enc", 1), "d_out": ("W_dec", 1)}
    for name, (tensor, dim) in sizes.items():
        shape = tuple(tensors[tensor].shape)
        if config.get(name) is not None and (len(shape) != 2 or shape[dim] != config[name]):
            _refuse(folder, f"{CONFIG} says {name} = {config[name]}, and {tensor} is {list(shape)}")


def _refuse(folder: Path, why: str) -> NoReturn:
    raise InputError(f"Dictionary: {folder}: {why}")

