"""One measurement of first_answer.py in a process of its own: `python first_answer_worker.py NAME`. It prints the seconds
of the part that counts, or nothing where the whole process does. LXT's environment has no lxt_fx, so each function imports
what it needs."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from speed_worker import stand_in_for_torchvision
from torch import Tensor, nn

TOKENS = 453
"""As many as in LXT's Llama script."""

CONVOLUTIONS, LINEARS = (0.1, 0.5, 100.0), (0.0, 0.01, 0.05, 0.1, 1.0)
"""The gammas of LXT's vision script."""


def models() -> Path:
    """Where fetched models lie, as first_answer.py says."""
    return Path(os.environ["LXT_FX_MODELS"])


def smollm2(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    folder = models() / "smollm2"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))  # LXT's transformers reads it too
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval(), tokenizer


def long_text(tokenizer: Any) -> str:
    """A text of TOKENS tokens."""
    paragraphs = json.loads((models() / "texts" / "wiki_paragraphs.json").read_text())
    ids = tokenizer(" ".join(map(" ".join, paragraphs[:20])), truncation=True, max_length=TOKENS).input_ids
    return str(tokenizer.decode(ids))


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def transform_smollm2() -> float:
    import lxt_fx

    model, _ = smollm2()
    return timed(lambda: lxt_fx.transform(model))


def transform_layers(layers: int) -> float:
    from transformers import LlamaConfig, LlamaForCausalLM

    import lxt_fx

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, vocab_size=100, **sizes)).eval()
    return timed(lambda: lxt_fx.transform(model))


def explain() -> float:
    """A short text, of a model that is loaded."""
    import lxt_fx

    model, tokenizer = smollm2()
    return timed(lambda: lxt_fx.explain(model, tokenizer, "The capital of France is"))


def explain_again() -> float:
    """Another short text of the same model."""
    import lxt_fx

    model, tokenizer = smollm2()
    lxt_fx.explain(model, tokenizer, "The capital of France is")
    return timed(lambda: lxt_fx.explain(model, tokenizer, "The capital of Italy is a city"))


def compiled() -> float:
    """The first compiled call."""
    import lxt_fx

    model, tokenizer = smollm2()
    explained: Any = lxt_fx.transform(model)
    embeddings = model.get_input_embeddings()(tokenizer("The capital of France is", return_tensors="pt").input_ids)
    leaf = embeddings.detach().requires_grad_()
    if hasattr(type(explained), "_kinds"):  # a version that compiles each kind of layer once
        explained.compile()
    else:
        explained = torch.compile(explained, fullgraph=True)
    return timed(lambda: explained(inputs_embeds=leaf).logits[0, -1].max().backward())


def plain_text() -> None:
    """What a command cannot do without: model, tokenizer and one plain gradient."""
    model, tokenizer = smollm2()
    gradient(model, tokenizer, "The capital of France is")


def gradient(model: Any, tokenizer: Any, text: str) -> Tensor:
    """Input*gradient of the largest logit, [tokens]."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    leaf = model.get_input_embeddings()(tokenizer(text, return_tensors="pt").input_ids).detach().requires_grad_()
    model(inputs_embeds=leaf, use_cache=False).logits[0, -1].max().backward()
    assert leaf.grad is not None
    found: Tensor = (leaf * leaf.grad).float().sum(-1)[0]
    return found


def script(dtype: torch.dtype) -> None:
    """LXT's Llama script, ported: from model and text to the relevance of each token."""
    import lxt_fx

    model, tokenizer = smollm2(dtype)
    found = lxt_fx.explain(model, tokenizer, long_text(tokenizer))
    assert len(found.relevance) == TOKENS


def script_lxt(dtype: torch.dtype) -> None:
    """The same as LXT does it."""
    stand_in_for_torchvision()
    from lxt.efficient import monkey_patch
    from transformers.models.llama import modeling_llama

    monkey_patch(modeling_llama)
    model, tokenizer = smollm2(dtype)
    assert len(gradient(model, tokenizer, long_text(tokenizer))) == TOKENS


def vision() -> tuple[nn.Module, Tensor]:
    """The vision transformer of LXT's script with random weights, and a picture [1, 3, 224, 224]."""
    from torchvision.models import vit_b_16

    torch.manual_seed(0)
    net = vit_b_16().eval()
    nn.init.normal_(net.heads.head.weight)
    return net, torch.randn(1, 3, 224, 224)


def gammas() -> float:
    import lxt_fx
    from lxt_fx.rules import Gamma

    for package in ("PIL", "torchvision"):  # those of LXT's environment, and of these nothing else
        import_from_lxt(package)
    net, picture = vision()
    base = lxt_fx.TABLES["cp_lrp"]

    def run() -> None:
        explained: Any = net
        for convolution, linear in itertools.product(CONVOLUTIONS, LINEARS):
            table = base.composite({nn.Conv2d: Gamma(convolution), nn.Linear: Gamma(linear)})
            explained = lxt_fx.transform(explained, (picture,), rules=table)
            leaf = picture.clone().requires_grad_()
            explained(leaf)[0].max().backward()

    return timed(run)


def gammas_lxt() -> float:
    stand_in_for_torchvision()
    net, picture = vision()
    from lxt.efficient import monkey_patch, monkey_patch_zennit
    from torchvision.models import vision_transformer
    from zennit.composites import LayerMapComposite
    from zennit.rules import Gamma

    monkey_patch(vision_transformer)
    monkey_patch_zennit()

    def run() -> None:
        for convolution, linear in itertools.product(CONVOLUTIONS, LINEARS):
            composite = LayerMapComposite([(nn.Conv2d, Gamma(convolution)), (nn.Linear, Gamma(linear))])
            composite.register(net)
            leaf = picture.clone().requires_grad_()
            net(leaf)[0].max().backward()
            composite.remove()

    return timed(run)


def import_from_lxt(package: str) -> None:
    root = Path(__file__).parents[2] / ".cache" / "lxt-env" / "lib"
    folder = next(root.glob(f"*/site-packages/{package}"))
    spec = importlib.util.spec_from_file_location(package, folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    sys.modules[package] = module = importlib.util.module_from_spec(spec)
    if package == "torchvision":
        stand_in_for_torchvision()
    spec.loader.exec_module(module)


MEASURED: dict[str, Callable[[], float | None]] = {
    "transform_smollm2": transform_smollm2,
    "transform_8": lambda: transform_layers(8),
    "transform_80": lambda: transform_layers(80),
    "explain": explain,
    "explain_again": explain_again,
    "compiled": compiled,
    "plain_text": plain_text,
    "script": lambda: script(torch.float32),
    "script_lxt": lambda: script_lxt(torch.float32),
    "script_bfloat16": lambda: script(torch.bfloat16),
    "script_lxt_bfloat16": lambda: script_lxt(torch.bfloat16),
    "gammas": gammas,
    "gammas_lxt": gammas_lxt,
}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(2)
    answers.write(json.dumps(MEASURED[sys.argv[1]]()) + "\n")
