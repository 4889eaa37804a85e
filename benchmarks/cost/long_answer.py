"""Time and peak memory of a long answer, through the answer, on a small Llama with random weights: the rows of the matrix
go to a folder. 2,000 answer tokens behind 2,000 of a prompt take about ten minutes on one thread.

    python benchmarks/cost/long_answer.py --answer 2000 --prompt 2000
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time

import torch
import transformers as hf

import lxt_fx


def small_llama(layers: int, hidden: int, vocabulary: int, positions: int) -> torch.nn.Module:
    """A Llama of random weights."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=positions,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config).eval()


def peak() -> float:
    """The most memory that this process had so far, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"prompt": 2000, "answer": 2000, "layers": 2, "hidden": 64, "vocabulary": 1000, "threads": 1}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = small_llama(asked.layers, asked.hidden, asked.vocabulary, asked.prompt + asked.answer)
    ids = torch.randint(0, asked.vocabulary, (asked.prompt + asked.answer,)).tolist()
    before, start = peak(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = lxt_fx.answer_relevance(
            model, None, ids[: asked.prompt], ids[asked.prompt :], with_prompt=False, through="answer",
            of=slice(-5, None), folder=folder,
        )  # fmt: skip
    assert isinstance(found, lxt_fx.RecursiveAnswer) and found.matrix is not None
    whole, start = time.perf_counter() - start, time.perf_counter()
    lxt_fx.RecursiveAnswer.of(found.matrix, slice(-5, None))
    solve = time.perf_counter() - start
    print(" ".join(f"{name}={getattr(asked, name)}" for name in sizes))
    print(f"all {whole:.0f} s, of which the solve {solve:.2f} s; peak {peak():.2f} GiB, before the call {before:.2f} GiB")
    print(f"sum of the relevance {float(found.relevance.sum()):.15f}, of which {found.stopped:.3g} ends inside the answer")


if __name__ == "__main__":
    main()
