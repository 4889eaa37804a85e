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


def read_files(folder: Path, scale: float | None) -> tuple[dict[str, Any], float | None, bool]:
    """The arguments of `Dictionary` for the files in a folder, and what is still to be folded into the tensors, as `folded`
    takes it. Raises InputError as `Dictionary.load` does."""
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
    said = config["metadata"]
    arguments = {
        **tensors,
        "kind": KINDS[architecture],
        "k": config.get("k") if architecture == "topk" else None,
        "center": bool(config.get("apply_b_dec_to_input", named not in _TRANSCODERS)),
        "rescale": config.get("normalize_activations") == "constant_norm_rescale",
        "about": str(said.get("model_name") or ""),
        "place": str(said.get("hook_name") or ""),
    }
    return arguments, factor, bool(config.get("rescale_acts_by_decoder_norm"))


def folded(tensors: Mapping[str, Tensor], factor: float | None, by_norm: bool) -> dict[str, Tensor]:
    """The tensors that change with a `factor` of the activations, and where features are measured by the length of their
    directions (`by_norm`). Lengths are those of training, before the factor: a threshold is a number on that scale."""
    found = dict(tensors)
    if by_norm:
        norm = found["W_dec"].norm(dim=-1)
        found |= {name: found[name] * norm for name in ("W_enc", "b_enc")}
        found["W_dec"] = found["W_dec"] / norm.where(norm > 0, 1.0)[:, None]
    if factor is not None:
        found["W_enc"] = found["W_enc"] * factor
        found |= {name: found[name] / factor for name in ("W_dec", "b_dec")}
    return found


def write_files(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Writes the files for the arguments of a `Dictionary`. Raises InputError for what the format cannot say."""
    from safetensors.torch import save_file

    tensors = {name: found.detach().contiguous() for name, found in arguments.items() if isinstance(found, Tensor)}
    tensors = {name: found.clone() for name, found in tensors.items()}  # the format refuses tensors that share memory
    config = _written(folder, tensors, arguments)
    features = tensors["W_enc"].shape[1]
    like = tensors["W_enc"]
    for name, size in (("b_enc", features), ("b_dec", tensors["W_dec"].shape[1])):
        if name not in tensors and not (name == "b_enc" and arguments["kind"] == "gated"):
            tensors[name] = like.new_zeros(size)
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].expand(features).contiguous()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        _refuse(folder, "there is a file of this name; give a folder")
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
        if arguments["center"]:
            _refuse(folder, "SAELens has no transcoder that subtracts b_dec from what it reads (center=True)")
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
        given = config.get("activation_fn_kwargs")
        config |= {"architecture": "topk", "k": given.get("k") if isinstance(given, dict) else None}
    return config


def _check_settings(folder: Path, config: Mapping[str, Any], named: str) -> None:
    """Raises InputError for settings under which the tensors mean something else than is computed here."""
    normalised = config.get("normalize_activations")
    if normalised not in (None, False, True, "none", "expected_average_only_in", "constant_norm_rescale"):
        _refuse(folder, f"normalize_activations is {normalised!r}, which is not computed here")
    if named in _TRANSCODERS and normalised == "constant_norm_rescale":
        _refuse(
            folder,
            "normalize_activations is 'constant_norm_rescale', which changes what a transcoder reads and not what it "
            "writes; this is not computed here",
        )
    for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
        if not isinstance(config.get(name, False), bool):
            _refuse(folder, f"{name} must be true or false, got {config[name]!r}")
    if config.get("rescale_acts_by_decoder_norm") and named not in ("topk", "batchtopk"):
        _refuse(folder, f"rescale_acts_by_decoder_norm is set, which architecture {named!r} does not have")
    if config.get("reshape_activations", "none") not in (None, "none", "hook_z"):
        _refuse(folder, f"reshape_activations is {config['reshape_activations']!r}, and only none and hook_z are known")
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

