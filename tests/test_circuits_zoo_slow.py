"""Circuits of every decoder of the zoo: the scores of edges add up, and a run with all edges is the run itself; or the
network is refused, and it is known why."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lxt_fx
from lxt_fx.base.errors import InputError, LxtFxError

sys.path.insert(0, str(Path(__file__).parent / "zoo"))
import zoo_models

FAMILIES = ("decoder LM", "MoE decoder LM", "SSM / linear-attention / hybrid")
DECODERS = [entry for entry, case in zoo_models.cases().items() if case["family"] in FAMILIES]

NORM, STREAMS = "something else than a constant factor, such as a norm", "has 0 residual streams"
GATE = "a gate on its heads, or an index that chooses keys"

REFUSED = {
    "gemma3n/Gemma3nTextModelTest": STREAMS,
    "qwen3_next/Qwen3NextModelTest": GATE,
    "zamba/ZambaModelTest": "is computed of %inputs_embeds, %",  # layers read the embedding beside the stream
    "zamba2/Zamba2ModelTest": "is computed of %inputs_embeds, %",
    "deepseek_v32/DeepseekV32ModelTest": GATE,
    "deepseek_v4/DeepseekV4ModelTest": STREAMS,
    "dbrx/DbrxModelTest": "while its graph was traced",  # how many tokens an expert has is in the graph
    "jetmoe/JetMoeModelTest": GATE,
    "minimax/MiniMaxModelTest": NORM,
    "openai/OpenAIGPTModelTest": NORM,
    "blt/BltModelTest": "that is in it already",
    "hrm_text/HrmTextModelTest": NORM,
    "xlm/XLMModelTest": NORM,
    "xlnet/XLNetModelTest": NORM,
    "flaubert/FlaubertModelTest": NORM,
    "bart/BartStandaloneDecoderModelTest": NORM,
    "prophetnet/ProphetNetStandaloneDecoderModelTest": NORM,
    "mvp/MvpStandaloneDecoderModelTest": NORM,
    "musicgen/MusicgenDecoderTest": "give one entry of its first dim",  # rows of ids are codebooks, not texts
    "afmoe/AfmoeModelTest": GATE,
    "cpmant/CpmAntModelTest": "not what tokens are looked up as",  # 32 prompts are looked up before the text
    "glm_moe_dsa/GlmMoeDsaModelTest": GATE,
}
"""Why a network has no circuits: a part of the message."""

NEAR = {torch.float64: 1e-6, torch.float32: 1e-3}
"""The largest difference that is rounding. Models of float64 compute their norms in float32."""

pytestmark = pytest.mark.slow


def other(leaf: Tensor) -> Tensor:
    """The text with another token in the second place."""
    found = leaf.clone()
    found[:, 1] = 0.3 * leaf[:, 1] - 0.7 * leaf[:, 0] if leaf.is_floating_point() else (leaf[:, 1] + 3) % 8
    return found


def explained_of(entry: str) -> tuple[lxt_fx.Explained, dict[str, Any], torch.dtype]:
    """The model in float64 if it runs so, with its texts and without padding."""
    case = zoo_models.cases()[entry]
    for dtype in (torch.float64, torch.float32):
        model, inputs = zoo_models.build(case)
        inputs.pop("attention_mask", None)
        if dtype == torch.float64:
            model, inputs = model.double(), zoo_models.to_double(inputs)
        try:
            return lxt_fx.transform(model.requires_grad_(False), kwargs=inputs, rules="gradient"), inputs, dtype
        except InputError:
            if dtype == torch.float32:
                raise
    raise AssertionError("one of both runs")


@pytest.mark.parametrize("entry", [pytest.param(entry, marks=pytest.mark.xdist_group(entry)) for entry in DECODERS])
def test_a_decoder_has_circuits_or_says_why_not(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root.manager, "disable", logging.WARNING)
    explained, inputs, dtype = explained_of(entry)
    leaf = next(name for name in ("inputs_embeds", "input_ids") if name in inputs)
    corrupted = inputs | {leaf: other(inputs[leaf])}
    target = [(3, 5)] * len(inputs[leaf])
    if entry in REFUSED:
        with pytest.raises(LxtFxError, match=re.escape(REFUSED[entry])):
            lxt_fx.circuit_scores(explained, inputs, corrupted, target)
        return
    found = lxt_fx.circuit_scores(explained, inputs, corrupted, target)
    assert len(found.writers) > 2 and found.edges.abs().sum() > 0
    assert (found.edges.sum(-1) - found.nodes).abs().max() <= NEAR[dtype] * found.nodes.abs().max()
    circuits = {1.0: found.circuit(1.0), 0.5: found.circuit(0.5)}
    whole = lxt_fx.circuit_faithfulness(explained, inputs, corrupted, target, circuits)
    assert abs(float(whole.faithfulness[-1]) - 1) <= NEAR[dtype]
    assert float((whole.clean - whole.corrupted).abs().max()) > 0
