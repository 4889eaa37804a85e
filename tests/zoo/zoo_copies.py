"""The models of the zoo with more layers: is a graph with copied layers the graph of a trace of each layer?

    python tests/zoo/zoo_copies.py --every 5    # one model in five; 4 seconds each

Prints a line for each model: how many layers are copies, or why none is, and whether all nodes are equal (op, arguments,
shapes, module stack, source line). The last lines count the models by outcome. The exit code is 1 if a graph differs.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from graph_steps import all_traced, steps  # noqa: E402
from zoo_models import build, cases  # noqa: E402

from lxt_fx.compiler.captures import captured_from  # noqa: E402
from lxt_fx.compiler.kept_captures import forget_model  # noqa: E402

LAYERS = 5
_COUNTS = re.compile(r"(num|n|encoder|decoder|hidden|text|vision|audio).*layers?$|^(num_layers|n_layer|depth|layers)$")


def deeper(config: Any) -> Any:
    """The config with five layers where it has one to three, and lists with an entry for each layer as long as that."""
    if isinstance(config, list):
        return [deeper(item) for item in config]
    if not isinstance(config, Mapping):
        return config
    counts = {key: value for key, value in config.items() if _COUNTS.search(key) and value in (1, 2, 3)}
    found = {key: LAYERS if key in counts else deeper(value) for key, value in config.items()}
    for key, value in found.items():
        if isinstance(value, list) and len(value) in counts.values() and re.search("layer|type|pattern", key):
            found[key] = [value[at % len(value)] for at in range(LAYERS)]
    return found


def outcome(name: str) -> tuple[str, str]:
    """What became of a model, in a word and in a sentence."""
    case = {**cases()[name], "config": deeper(cases()[name]["config"])}
    try:
        model, inputs = build(case)
        start = time.process_time()
        found = captured_from(model, (), inputs, dynamic=True).captured
        took = time.process_time() - start
    except Exception as error:  # a config that cannot have more layers, or a model that cannot be captured
        return "not built", f"{type(error).__name__}: {str(error)[:100]}"
    forget_model(model)
    with all_traced():
        start = time.process_time()
        whole = captured_from(model, (), inputs, dynamic=True).captured
        full = time.process_time() - start
    why = "; ".join(found.copied.not_copied)
    said = f"{found.copied.layers} copies, {found.method}, {took / full:.2f} of the time {why}"
    if found.method != whole.method or steps(found.gm) != steps(whole.gm):
        return "DIFFERS", said
    if found.method == "make_fx":
        return "make_fx", said
    return ("copied" if found.copied.layers else "traced"), said


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    counts: Counter[str] = Counter()
    for name in sorted(name for name in cases() if given.only in name)[:: given.every]:
        word, said = outcome(name)
        counts[word] += 1
        print(f"{name}: {word}: {said}", flush=True)
    print(dict(counts))
    raise SystemExit(counts["DIFFERS"])
