"""Speech recognition by frames (CTC): logits [batch, frames, tokens] of a sound, of which one token is the blank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.readable_tokens import readable_tokens
from lxt_fx.attribution.target import Wanted
from lxt_fx.attribution.target_entry import indices_of, logits_of
from lxt_fx.attribution.target_names import TokenNames
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Example
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.entry import entry_in
from lxt_fx.tasks.likeness import quoted
from lxt_fx.tasks.rows import row_of
from lxt_fx.tasks.task import Context, Number
from lxt_fx.tasks.words import stretch_of


@dataclass(frozen=True, slots=True)
class Spelled:
    """One token of the transcript and the frames that give it: repeated frames are one token."""

    token: int
    frames: tuple[int, ...]
    shown: str


@dataclass(frozen=True, slots=True)
class Transcribing:
    """The summed logits of the frames that spell a word, along the model's best path: of a word of the transcript by its
    letters, of a token by its index, by default of the whole transcript. `Target.at(frame, token)` is one logit."""

    name: str = "transcribing"

    def number(self, asked: Asked, output: Any, index: int, example: Example, context: Context) -> Number:
        """A sum of logits at some frames, or one logit."""
        row = row_of(example, index, "input_values", "input_features")
        logits = logits_of(context.reading, output)[row]
        if asked.spot is not None or asked.minus is not None:
            return self._at_frame(asked, logits, context)
        path = spelled(logits[: frames_of(len(logits), row, context)].detach(), context)
        if not path:
            raise InputError(
                f"{context.function}: {context.model_class} hears nothing in this sound (every frame is blank); give "
                "Target.at(frame, token)"
            )
        chosen, times = (path, 1) if asked.entry is None else _chosen(asked.entry, path, context)
        frames = [(frame, part.token) for part in chosen for frame in part.frames]
        value = logits[[frame for frame, _ in frames], [token for _, token in frames]].sum()
        shown = "".join(part.shown for part in chosen).strip()
        which = f", the first of {times}" if times > 1 else ""
        what = f"the transcript {quoted(shown)}" if asked.entry is None else f"'{shown}'"
        return Number(value, f"summed logits of {what} at frames {frames[0][0]} to {frames[-1][0]}{which}", shown)

    def _at_frame(self, asked: Asked, logits: Tensor, context: Context) -> Number:
        frame, function = asked.at_position(context.function).position, context.function
        if frame is None or not -len(logits) <= frame < len(logits):
            raise InputError(
                f"{function}: a contrast of two tokens is read at one of the {len(logits)} frames (0 to "
                f"{len(logits) - 1}), got {frame}; write Target.at(frame, token, minus)"
            )
        names = TokenNames(context.tokenizer, function)
        own = logits[frame % len(logits)]
        return entry_in(asked, own, names, f" at frame {frame % len(logits)}").of(own)


def spelled(logits: Tensor, context: Context) -> list[Spelled]:
    """The transcript of logits [frames, tokens] by the best path: each token with its frames."""
    blank, found = getattr(context.config, "pad_token_id", None) or 0, list[tuple[int, list[int]]]()
    before = blank
    for frame, token in enumerate(logits.argmax(-1).tolist()):
        if token == before and token != blank:
            found[-1][1].append(frame)
        elif token != blank:
            found.append((token, [frame]))
        before = token
    divider = getattr(context.tokenizer, "word_delimiter_token_id", None)
    shown = [" " if token == divider else _letter(token, context) for token, _ in found]
    return [Spelled(token, tuple(frames), text) for (token, frames), text in zip(found, shown, strict=True)]


def _letter(token: int, context: Context) -> str:
    """A token of a CTC vocabulary as it stands there: its tokenizer would join and drop letters."""
    text = context.tokenizer.convert_ids_to_tokens([token])[0]
    return text.replace("▁", " ") if isinstance(text, str) else readable_tokens(context.tokenizer, [token])[0]


def _chosen(wanted: int | str, path: Sequence[Spelled], context: Context) -> tuple[Sequence[Spelled], int]:
    """The part of the transcript that a target means, and how often the transcript has it."""
    if isinstance(wanted, str):
        found = stretch_of(wanted, [part.shown for part in path])
        if found is not None:
            return path[found.start : found.stop], found.times
    token = wanted
    if isinstance(wanted, str):
        transcript = "".join(part.shown for part in path).strip()
        if TokenNames(context.tokenizer, context.function).single(wanted) == (None, None):
            raise InputError(f"{context.function}: {wanted!r} is no word of the transcript, which is {transcript!r}")
        (token,) = indices_of(Wanted(wanted), _counts(path, context), TokenNames(context.tokenizer, context.function))
    own = [part for part in path if part.token == token]
    if not own:
        transcript = "".join(part.shown for part in path).strip()
        raise InputError(
            f"{context.function}: {wanted!r} is not in the transcript, which is {transcript!r}; for what was not heard "
            "give a frame: Target.at(frame, token)"
        )
    return own[:1], len(own)


def _counts(path: Sequence[Spelled], context: Context) -> Tensor:
    counts = torch.zeros(max(context.config.vocab_size, 1 + max(part.token for part in path)))
    for part in path:
        counts[part.token] += 1
    return counts


def frames_of(count: int, row: int, context: Context) -> int:
    """How many of the frames are sound, not padding. The mask has an entry for each sample, or for each frame of
    features."""
    mask = context.inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or not bool(mask[row].any()):
        return count
    real, whole = int(mask[row].sum()), mask.shape[1]
    kernels, strides = getattr(context.config, "conv_kernel", ()), getattr(context.config, "conv_stride", ())
    if len(kernels) == len(strides) and _shorter(whole, kernels, strides) == count:
        return max(_shorter(real, kernels, strides), 1)
    return max(-(-real * count // whole), 1)


def _shorter(samples: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    for kernel, stride in zip(kernels, strides, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples
