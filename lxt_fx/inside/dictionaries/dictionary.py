"""Dictionaries: sparse autoencoders and transcoders as plain tensors, whatever they were trained with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.inside.dictionaries.dictionary_files import folded, read_files, write_files

Kind = Literal["relu", "topk", "batch_topk", "jump_relu", "gated"]

NEEDS: Mapping[str, tuple[str, ...]] = {
    "relu": (),
    "topk": ("k",),
    "batch_topk": ("threshold",),
    "jump_relu": ("threshold",),
    "gated": ("b_gate", "r_mag", "b_mag"),
}
"""What each kind has beside W_enc, b_enc, W_dec and b_dec."""


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What a dictionary can compute with."""


class Dictionary:
    """Directions d_k in which a value h is written as h = sum_k f_k d_k + b + e, with features f of which most are 0.

    `W_enc` [width, features] and `b_enc` [features] give z = x W_enc + b_enc, an activation of z gives the features f, and
    `W_dec` [features, width], whose lines are the d_k, and `b_dec` [width] give what is reconstructed, f W_dec + b_dec.
    With `center=True` the encoder reads x - b_dec. `kind` is the activation:

    | kind | f | |
    |---|---|---|
    | `relu` | relu(z) | Bricken et al. 2023 |
    | `topk` | relu(z) of the `k` largest z, else 0 | Gao et al. 2024 |
    | `batch_topk` | relu(z) where z > `threshold`, the one number of training, else 0 | Bussmann et al. 2024 |
    | `jump_relu` | relu(z) where z > `threshold` [features], else 0 | Rajamanoharan et al. 2024 |
    | `gated` | relu(z exp(r_mag) + b_mag) where z + b_gate > 0, else 0; no b_enc | Rajamanoharan et al. 2024 |

    With `rescale=True` the encoder reads x sqrt(width) / |x|, and what is reconstructed is multiplied by |x| / sqrt(width);
    |x| is held constant, and where x is 0 there is nothing to rescale (SAELens: `constant_norm_rescale`). A *transcoder*
    reads one place and writes another: `W_dec` and `b_dec` have the width of what it writes, and it may have `W_skip`
    [width written, width read], which adds x W_skip^T.

    The tensors are used as they are, and not copied. `about` names the model that it was trained on, `place` where in it,
    in the words of its file. Raises InputError for tensors that are missing, are sparse or of another dtype than float64,
    float32, bfloat16 or float16, were made in inference mode, do not fit together, or have entries that are NaN or
    infinite.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        W_enc: Tensor,
        W_dec: Tensor,
        b_enc: Tensor | None = None,
        b_dec: Tensor | None = None,
        *,
        kind: Kind = "relu",
        k: int | None = None,
        threshold: Tensor | float | None = None,
        b_gate: Tensor | None = None,
        r_mag: Tensor | None = None,
        b_mag: Tensor | None = None,
        W_skip: Tensor | None = None,
        center: bool = False,
        rescale: bool = False,
        about: str = "",
        place: str = "",
    ) -> None:
        if isinstance(threshold, (int, float)) and not isinstance(threshold, bool) and isinstance(W_enc, Tensor):
            threshold = torch.as_tensor(float(threshold), dtype=W_enc.dtype, device=W_enc.device)
        given: dict[str, Any] = {
            "W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": threshold, "b_gate": b_gate,
            "r_mag": r_mag, "b_mag": b_mag, "W_skip": W_skip,
        }  # fmt: skip
        self.kind: Kind = kind
        self.k, self.center, self.rescale, self.about, self.place = k, center, rescale, about, place
        self.tensors: dict[str, Tensor] = {name: tensor for name, tensor in given.items() if tensor is not None}
        _check(self)

    @staticmethod
    @torch.inference_mode(False)
    def load(folder: str | Path, *, scale: float | None = None) -> Dictionary:
        """The dictionary in a folder with `cfg.json` and `sae_weights.safetensors`, as SAELens writes it (versions 3 to 6;
        architectures standard, topk, batchtopk, jumprelu, gated and their transcoders).

        `scale` is what activations were multiplied by in training, where the file says that they were and not by what
        (`normalize_activations: expected_average_only_in`); the weights are then copied with it. Raises InputError for a
        file that is missing or damaged, or that says something which cannot be followed.
        """
        arguments, factor, by_norm = read_files(Path(folder), scale)
        checked = Dictionary(**arguments)
        return Dictionary(**arguments | folded(checked.tensors, factor, by_norm))

    def save(self, folder: str | Path) -> None:
        """Writes the dictionary as SAELens does: `cfg.json` and `sae_weights.safetensors`. A `batch_topk` one is written
        as `jumprelu`, as it is there. Raises InputError for what that format cannot say."""
        write_files(Path(folder), self._arguments())

    def __repr__(self) -> str:
        active = f", k={self.k}" if self.k is not None else ""
        widths = f"{self.width} -> {self.features} features -> {self.width_written}"
        trained = "".join(f", {said}" for said in (self.about, self.place) if said)
        return f"Dictionary({self.kind}{active}, {widths}{trained})"

    @property
    def width(self) -> int:
        """The size of the last axis of what it reads."""
        return int(self.tensors["W_enc"].shape[0])

    @property
    def width_written(self) -> int:
        """The size of the last axis of what it writes: `width`, but for a transcoder."""
        return int(self.tensors["W_dec"].shape[1])

    @property
    def features(self) -> int:
        """How many features it has."""
        return int(self.tensors["W_enc"].shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its tensors."""
        return self.tensors["W_enc"].dtype

    @property
    def device(self) -> torch.device:
        """Where its tensors lie."""
        return self.tensors["W_enc"].device

    @torch.inference_mode(False)
    def to(self, target: torch.dtype | torch.device | str) -> Dictionary:
        """A copy of another dtype, or on another device."""
        return Dictionary(**self._arguments() | {name: tensor.to(target) for name, tensor in self.tensors.items()})

    def _arguments(self) -> dict[str, Any]:
        return {
            **self.tensors, "kind": self.kind, "k": self.k, "center": self.center, "rescale": self.rescale,
            "about": self.about, "place": self.place,
        }  # fmt: skip

    def encode(self, x: Tensor, **tensors: Tensor) -> Tensor:
        """The features [..., features] of x [..., width]. `tensors` stand in for its own, by name. Raises InputError for an
        x of another width."""
        t = tensors or self.tensors
        _check_last(x, "x", self.width)
        if self.rescale:
            length = x.detach().norm(dim=-1, keepdim=True)
            x = x * (math.sqrt(self.width) / torch.where(length == 0, 1.0, length))
        if self.center:
            x = x - t["b_dec"]
        z = F.linear(x, t["W_enc"].mT, t.get("b_enc"))
        return torch.relu(self._chosen(z, t))

    def _chosen(self, z: Tensor, t: Mapping[str, Tensor]) -> Tensor:
        """z where a feature may be active, 0 elsewhere. Which features these are is constant: no relevance flows there."""
        held = z.detach()
        if self.kind == "topk":
            assert self.k is not None
            chosen = torch.zeros_like(held).scatter(-1, held.topk(self.k, dim=-1, sorted=False).indices, 1.0)
        elif self.kind in ("batch_topk", "jump_relu"):
            chosen = (held > t["threshold"]).to(z.dtype)
        elif self.kind == "gated":
            chosen = (held + t["b_gate"] > 0).to(z.dtype)
            z = z * torch.exp(t["r_mag"]) + t["b_mag"]
        else:
            return z
        return z * chosen

    def decode(self, features: Tensor, x: Tensor, **tensors: Tensor) -> Tensor:
        """What is reconstructed from features [..., features] of x [..., width]: [..., width written], the sum
        sum_k f_k d_k + b, and x W_skip^T where there is one. Raises InputError for features or an x of another width."""
        t = tensors or self.tensors
        _check_last(features, "features", self.features)
        _check_last(x, "x", self.width)
        found = F.linear(features, t["W_dec"].mT, t.get("b_dec"))
        if "W_skip" in t:
            found = found + F.linear(x, t["W_skip"])
        return found * (x.detach().norm(dim=-1, keepdim=True) / math.sqrt(self.width)) if self.rescale else found


def _check(dictionary: Dictionary) -> None:
    """Raises InputError for a dictionary that cannot be used."""
    found, kind = dictionary.tensors, dictionary.kind
    if kind not in get_args(Kind):
        _refuse(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
            _refuse(f"{name} must be a tensor of floats, got {getattr(tensor, 'dtype', type(tensor).__name__)}")
        if tensor.is_inference():
            _refuse(f"{name} was made in torch.inference_mode(), so it has no part in a backward; make it outside of that")
        if tensor.layout is not torch.strided:
            _refuse(f"{name} is sparse ({tensor.layout}); give {name}.to_dense()")
    if missing := [name for name in ("W_enc", "W_dec") if name not in found]:
        _refuse(f"{missing[0]} is missing")
    _check_shapes(dictionary)
    _check_parts(dictionary)
    first = found["W_enc"]
    for name, tensor in found.items():
        if tensor.dtype != first.dtype or tensor.device != first.device:
            _refuse(f"{name} is {_kind_of(tensor)}, and W_enc is {_kind_of(first)}; bring them together with .to(...)")
        if not tensor.is_meta and not bool(tensor.detach().isfinite().all()):
            count = int((~tensor.detach().isfinite()).sum())
            _refuse(f"{name} has {count} entries that are NaN or infinite; the file or the training that made it is broken")


def _check_parts(dictionary: Dictionary) -> None:
    """What the kind needs is there, and nothing that it does not read."""
    kind, k, found = dictionary.kind, dictionary.k, dictionary.tensors
    own = set(NEEDS[kind])
    given = {"threshold", "b_gate", "r_mag", "b_mag"} & found.keys() | ({"k"} if k is not None else set())
    if missing := sorted(own - given):
        _refuse(f"kind {kind!r} needs {', '.join(missing)}")
    if other := sorted(given - own):
        _refuse(f"kind {kind!r} has no {', '.join(other)}")
    if kind == "gated" and "b_enc" in found:
        _refuse("kind 'gated' has no b_enc: b_gate and b_mag are its biases")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= found["W_enc"].shape[-1]):
        _refuse(f"k must be a whole number from 1 to the {found['W_enc'].shape[-1]} features, got {k!r}")


def _check_shapes(dictionary: Dictionary) -> None:
    found = dictionary.tensors
    for name in ("W_enc", "W_dec"):
        if found[name].dim() != 2:
            _refuse(f"{name} must have two dimensions, got {list(found[name].shape)}")
    width, features = found["W_enc"].shape
    if not width or not features:
        _refuse(f"W_enc is [{width}, {features}], so there are no features")
    written = found["W_dec"].shape[1]
    wanted = {
        "W_dec": (features, written), "b_enc": (features,), "b_dec": (written,), "W_skip": (written, width),
        "b_gate": (features,), "r_mag": (features,), "b_mag": (features,),
    }  # fmt: skip
    for name, shape in wanted.items():
        if name in found and tuple(found[name].shape) != shape:
            _refuse(f"{name} is {list(found[name].shape)}, and W_enc [{width}, {features}] asks for {list(shape)}")
    if "threshold" in found and tuple(found["threshold"].shape) not in ((), (1,), (features,)):
        said = f"must be one number, or one for each of {features} features"
        _refuse(f"threshold is {list(found['threshold'].shape)}, and {said}")
    if dictionary.center and ("b_dec" not in found or written != width):
        _refuse("center=True subtracts b_dec from what is read, so it needs a b_dec of that width")
    if dictionary.rescale and written != width:
        _refuse("rescale=True is for dictionaries that write what they read, and this one has another width there")
    if dictionary.rescale and "W_skip" in found:
        _refuse("rescale=True is for dictionaries that write what they read, and W_skip is of a transcoder")


def _check_last(given: Tensor, name: str, size: int) -> None:
    if given.dim() == 0 or given.shape[-1] != size:
        _refuse(f"{name} must be [..., {size}], got {list(given.shape)}")


def _kind_of(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def _refuse(why: str) -> Any:
    raise InputError(f"Dictionary: {why}")
