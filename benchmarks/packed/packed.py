"""SmolLM2 in 4 and 8 bits beside float32: forward, ledger, token relevance, faithfulness, memory, time.

    python benchmarks/packed/packed.py                     # every scheme whose package is installed; about 30 minutes
    python benchmarks/packed/packed.py --scheme nf4 --texts 4

Needs the model and the texts of `examples/models.py`, and bitsandbytes or torchao. For each scheme it prints:

- forward: whether the logits are bit-equal to those of the quantised model
- ledger: what no cause accounts for, relative to the explained logit (bound 1e-4), and what the kernels absorb
- rank: Spearman's correlation of token relevance with that of float32, over the paragraphs
- faithfulness: the area between the removal curves, beside that of float32 (`perturbation_curves`, in
  ten steps)
- memory: the peak of an explanation in a process of its own, model included, as a part of float32's (bound 0.5)
- time: an explanation as a multiple of float32's, the two in turns
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import lxt_fx  # noqa: E402
import models  # noqa: E402

WORDS = 60
STEPS = lxt_fx.Removal(steps=10)


def replaced(model: nn.Module, made: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """The model with other linear layers, but for the head."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            model.set_submodule(name, made(module))
    return model.to("cpu").eval()


def four_bits(model: nn.Module) -> nn.Module:
    import bitsandbytes as bnb

    def made(linear: nn.Linear) -> nn.Module:
        found = bnb.nn.Linear4bit(linear.in_features, linear.out_features, False, torch.float32, True, "nf4")
        weight = linear.weight.detach().clone()
        found.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=found)
        return found

    return replaced(model, made)


def eight_bits(model: nn.Module) -> nn.Module:
    import bitsandbytes as bnb

    def made(linear: nn.Linear) -> nn.Module:
        found = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, False, has_fp16_weights=False, threshold=6.0)
        found.weight = bnb.nn.Int8Params(linear.weight.detach().clone(), requires_grad=False, has_fp16_weights=False)
        return found

    return replaced(model, made)


def by_torchao(name: str) -> Callable[[nn.Module], nn.Module]:
    def made(model: nn.Module) -> nn.Module:
        from torchao import quantization as own

        int4 = name == "int4"
        config = own.IntxWeightOnlyConfig(weight_dtype=torch.int4) if int4 else own.Int8WeightOnlyConfig()
        own.quantize_(model, config, lambda module, path: type(module) is nn.Linear and path != "lm_head")
        return model

    return made


SCHEMES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float32": lambda model: model,
    "nf4": four_bits,
    "int8": eight_bits,
    "torchao int8": by_torchao("int8"),
    "torchao int4": by_torchao("int4"),
}


def loaded(scheme: str) -> tuple[nn.Module, Any]:
    model, tokenizer = models.load("smollm2")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()  # out of the file that they are mapped from, which would stay whole
    return SCHEMES[scheme](model.float().eval()), tokenizer


def texts(tokenizer: Any, count: int) -> list[Tensor]:
    """The first words of paragraphs, as ids [1, tokens]."""
    found = [" ".join(text.split()[:WORDS]) for _, text in models.wiki_paragraphs()]
    return [tokenizer(text, return_tensors="pt").input_ids for text in found[:count]]


def explained_once(explained: lxt_fx.Explained, ids: Tensor) -> Tensor:
    """The relevance of each token [tokens] for the likeliest next one."""
    output, leaves = explained.with_leaves(input_ids=ids)
    output.logits[0, -1].max().backward()
    (leaf,) = leaves.values()
    return (leaf.detach() * leaf.grad).sum(-1)[0]


def rank_correlation(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def measured_alone(scheme: str) -> tuple[int, int]:
    """Bytes that a process has more than before it loaded the model: before an explanation, and at its peak. Memory that is
    freed goes back at once, so that what the float32 weights took before they were packed does not count."""
    own = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    out = subprocess.run([sys.executable, __file__, "--alone", scheme], capture_output=True, text=True, env=own)
    if out.returncode:
        raise SystemExit(out.stderr)
    before, most = map(int, out.stdout.split()[-2:])
    return before, most


def alone(scheme: str) -> None:
    """Prints what `measured_alone` reads. The kernel's count of the peak is set back before the explanation."""
    lxt_fx.transform(SCHEMES[scheme](nn.Sequential(nn.Linear(64, 64))), (torch.ones(1, 64),))  # imports what there is
    empty = status("VmRSS")
    model, tokenizer = loaded(scheme)
    (ids,) = texts(tokenizer, 1)
    explained = lxt_fx.transform(model)
    explained_once(explained, ids)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    explained_once(explained, ids)
    print(before - empty, status("VmHWM") - empty)


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def area(explained: lxt_fx.Explained, ids: Tensor) -> float:
    """Between the removal curves of a text, whose likeliest next token is explained."""
    relevance = explained_once(explained, ids)[None]
    return float(lxt_fx.perturbation_curves(explained, ids, relevance, removal=STEPS).area.mean())


class Float32:
    """What all schemes are compared with, computed once."""

    def __init__(self, count: int) -> None:
        model, tokenizer = loaded("float32")
        self.explained, self.texts = lxt_fx.transform(model), texts(tokenizer, count)
        self.relevance = [explained_once(self.explained, ids) for ids in self.texts]
        self.area = statistics.mean(area(self.explained, ids) for ids in self.texts)
        self.before, self.most = measured_alone("float32")


def compared(scheme: str, plain: Float32) -> None:
    """Prints all numbers of a scheme."""
    model, _ = loaded(scheme)
    first, second = plain.explained, lxt_fx.transform(model)
    every, ranks, equal, apart, kernels = plain.texts, [], True, [], []
    for index, ids in enumerate(every):
        ranks.append(rank_correlation(plain.relevance[index], explained_once(second, ids)))
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        equal &= torch.equal(second(input_ids=ids).logits, model(inputs_embeds=embedded).logits)
        if index < 5:
            ledger = lxt_fx.audit(second, ids)
            size = float(ledger.value.abs().sum())
            for found, cause in ((apart, lxt_fx.Cause.UNACCOUNTED), (kernels, lxt_fx.Cause.KERNEL)):
                found.append(abs(sum(float(e.amount.sum()) for e in ledger.entries if e.cause is cause)) / size)
    ratios = []
    for ids in every[:10]:
        spent = []
        for explained in (first, second):
            start = time.perf_counter()
            explained_once(explained, ids)
            spent.append(time.perf_counter() - start)
        ratios.append(spent[1] / spent[0])
    own_area = statistics.mean(area(second, ids) for ids in every)
    before, most = measured_alone(scheme)
    print(f"{scheme}, {len(every)} paragraphs")
    print(f"  forward bit-equal to the quantised model's: {equal}")
    print(f"  ledger: not accounted for {max(apart):.1e}, kernels {max(kernels):.1e} of the logit")
    print(f"  rank correlation with float32: mean {statistics.mean(ranks):.3f}, lowest {min(ranks):.3f}")
    print(f"  memory of an explanation, model included: {most / plain.most:.3f} of float32's ({most / 2**20:.0f} MiB)")
    print(f"  memory above the model: {(most - before) / max(1, plain.most - plain.before):.2f} of float32's")
    print(f"  time: {statistics.median(ratios):.2f} of float32's")
    print(f"  faithfulness, area between the removal curves: {own_area:.3f}, float32 {plain.area:.3f}", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="MatMul8bitLt")  # bitsandbytes says it at every call
    parser = argparse.ArgumentParser()
    parser.add_argument("--scheme", choices=list(SCHEMES)[1:])
    parser.add_argument("--texts", type=int, default=40)
    parser.add_argument("--alone")
    given = parser.parse_args()
    if given.alone:
        alone(given.alone)
    else:
        float32 = Float32(given.texts)
        for one in [given.scheme] if given.scheme else list(SCHEMES)[1:]:
            try:
                compared(one, float32)
            except ImportError as error:
                print(f"{one}: {error}")
