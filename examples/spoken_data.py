"""Sound files as Whisper takes them: one channel at 16 kHz."""

from __future__ import annotations

import wave
from pathlib import Path

import torch

WHISPER_RATE = 16_000


def read_clip(path: Path) -> torch.Tensor:
    """f32[samples] from -1 to 1 of a 16-bit WAV file whose rate is a multiple of 16 kHz; channels are averaged.

    Raises ValueError for another rate or width.
    """
    with wave.open(str(path)) as clip:
        rate, width, channels = clip.getframerate(), clip.getsampwidth(), clip.getnchannels()
        frames = bytearray(clip.readframes(clip.getnframes()))
    if rate % WHISPER_RATE or width != 2:
        raise ValueError(f"{path}: {rate} Hz at {width} bytes; need 2 bytes and a multiple of {WHISPER_RATE} Hz")
    samples = torch.frombuffer(frames, dtype=torch.int16).view(-1, channels).float().mean(dim=1) / 2**15
    # The mean of each run of samples is a crude low-pass filter, good enough for speech.
    run = rate // WHISPER_RATE
    return samples[: len(samples) // run * run].view(-1, run).mean(dim=1)
