"""Sounds as the inputs of a call: a waveform, a file, what a feature extractor returned; and their axis of time."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.inputs.facts import Facts
from lxt_fx.inputs.places import SoundPlace
from lxt_fx.inputs.resampling import resampled
from lxt_fx.inputs.tools import Tools
from lxt_fx.results.readings import SoundReading

ENDINGS = (".wav", ".flac", ".ogg", ".mp3", ".aiff")
USUAL_RATE = 16000
USUAL_STEP = 0.01
"""Samples a second, and seconds between two frames, of an extractor that does not name its own."""


def read_sound(facts: Facts, tools: Tools, what: Any, rate: int | None) -> Any:
    """A sound as samples [samples] of the model's own rate. One of another rate is resampled; a waveform whose rate is not
    given counts as one of the model's.

    Raises InputError for a file that cannot be read, for what is no waveform, and for a rate below 1.
    """
    samples, found = _file(facts, Path(what)) if isinstance(what, (str, Path)) else (_samples(facts, what), rate)
    if found is not None and found < 1:
        raise InputError(f"{facts.function}: the sound has {found} samples a second; give how many it has, as 16000")
    own = rate_of(tools)
    return samples if found in (None, own) else resampled(torch.as_tensor(samples), found, own).numpy()


def _samples(facts: Facts, what: Any) -> Any:
    tensor = torch.as_tensor(np.asarray(what) if isinstance(what, (list, tuple)) else what)
    if tensor.dim() == 2 and 1 in tensor.shape:
        tensor = tensor.flatten()
    if tensor.dim() != 1 or not len(tensor):
        raise InputError(
            f"{facts.function}: a sound is its samples [samples], got {list(tensor.shape)}; give one channel of it"
        )
    if not tensor.is_floating_point():
        info = torch.iinfo(tensor.dtype)
        tensor = tensor.double() / max(info.max, 1)
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{facts.function}: the sound has samples that are NaN or infinite; look at what made it")
    return tensor.detach().cpu().float().numpy()


def _file(facts: Facts, path: Path) -> tuple[Any, int]:
    if not path.is_file():
        raise InputError(f"{facts.function}: there is no file {str(path)!r}; give the path of a sound")
    try:
        import soundfile
    except ModuleNotFoundError:
        return _wave_file(facts, path)
    samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    return samples.mean(axis=1), int(rate)


def _wave_file(facts: Facts, path: Path) -> tuple[Any, int]:
    """A file of 16-bit samples, which Python reads by itself."""
    try:
        with wave.open(str(path), "rb") as opened:
            width, channels, rate = opened.getsampwidth(), opened.getnchannels(), opened.getframerate()
            content = opened.readframes(opened.getnframes())
    except (wave.Error, EOFError) as error:
        raise InputError(
            f"{facts.function}: {str(path)!r} is not a plain .wav file ({error}); other kinds need soundfile: pip install "
            "lxt_fx[sounds]"
        ) from error
    if width != 2:
        raise InputError(
            f"{facts.function}: {str(path)!r} has samples of {8 * width} bits; only 16 are read without soundfile: pip "
            "install lxt_fx[sounds]"
        )
    samples = np.frombuffer(content, dtype="<i2").reshape(-1, channels).mean(axis=1) / 32768
    return samples.astype(np.float32), rate


def extracted(facts: Facts, tools: Tools, waves: Sequence[Any]) -> dict[str, Any]:
    """What the feature extractor makes of sounds of its rate.

    Raises InputError without an extractor, and where the sounds must be padded and the model does not say which samples are
    padding.
    """
    extractor = tools.feature_extractor
    if extractor is None:
        raise InputError(
            f"{facts.function}: a sound must be prepared for {facts.model_class}, and no feature extractor was given; give "
            "AutoProcessor or AutoFeatureExtractor.from_pretrained(...) as processor"
        )
    own = rate_of(tools)
    settings: dict[str, Any] = {}
    if len({len(samples) for samples in waves}) > 1 and facts.sound == "input_values":
        settings["padding"] = True
        each = [_tensors(extractor([samples], sampling_rate=own, return_tensors="pt")) for samples in waves]
        if all(one[facts.sound].shape == each[0][facts.sound].shape for one in each):  # it makes all of one length itself
            return {name: torch.cat([one[name] for one in each]) for name in each[0]}
        if facts.takes("attention_mask") and getattr(extractor, "return_attention_mask", False) is False:
            raise InputError(
                f"{facts.function}: sounds of different lengths must be padded, and {type(extractor).__name__} makes no "
                "mask for it, so that the padding would be heard; give the sounds one at a time"
            )
    return _tensors(extractor(waves, sampling_rate=own, return_tensors="pt", **settings))


def _tensors(made: Any) -> dict[str, Tensor]:
    return {name: value for name, value in made.items() if isinstance(value, Tensor)}


def rate_of(tools: Tools) -> int:
    """The samples a second that the model was made for."""
    return int(getattr(tools.feature_extractor, "sampling_rate", USUAL_RATE))


def sound_places(
    facts: Facts, tools: Tools, inputs: dict[str, Any], name: str, waves: Sequence[Any] | None
) -> list[SoundPlace]:
    """One place for each sound of a batch, with its axis of time."""
    value, rate = inputs[name], rate_of(tools)
    time, step, entries = _time(facts, tools, value, rate)
    mask = inputs.get("attention_mask")
    places = []
    for index in range(len(value)):
        count = value.shape[time]
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape == (len(value), count):
            count = int(mask[index].sum())
        waveform = None if waves is None else torch.as_tensor(waves[index]).float()
        if waveform is None and value.dim() == 2:
            waveform = value[index, :count].detach().cpu().float()
        reading = SoundReading(step, waveform, None if waveform is None else rate)
        places.append(SoundPlace(name, "sound", index, reading, time, entries, count))
    return places


def _time(facts: Facts, tools: Tools, value: Tensor, rate: int) -> tuple[int, float, int]:
    """The dim that is time, the seconds of a place, and how many entries of the dim are one place."""
    if value.dim() == 2:
        strides = getattr(facts.config, "conv_stride", None)
        entries = prod(strides) if strides else max(1, rate // 50)
        return 1, entries / rate, entries
    extractor = tools.feature_extractor
    hop = getattr(extractor, "hop_length", None)
    step = USUAL_STEP if not hop else hop / rate
    holders = ((extractor, "num_mel_bins"), (extractor, "feature_size"), (facts.config, "num_mel_bins"))
    named = [getattr(holder, name, None) for holder, name in holders]
    bands = next((found for found in named if isinstance(found, int) and found > 1), None)
    return (1 if value.shape[-1] == bands and value.shape[1] != bands else value.dim() - 1), step, 1
