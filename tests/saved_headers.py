"""Headers of saved files, taken apart and edited.

    python tests/saved_headers.py 600        # fuzzes for ten minutes and prints what load said how often

A header is edited at random (`edited`); `load` must then give a module or an InputError, and nothing that stands in the
header may run.
"""

from __future__ import annotations

import copy
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import lxt_fx
from lxt_fx.base.saved_json import read_json
from lxt_fx.compiler.saved_module import module_of

Header = dict[str, Any]


def parts_of(explained: lxt_fx.Explained, folder: Path) -> tuple[Header, dict[str, Tensor]]:
    """The header and the tensors of the file that `save` writes."""
    lxt_fx.save(explained, folder / "whole.safetensors")
    with safe_open(str(folder / "whole.safetensors"), "pt") as file:
        return json.loads(file.metadata()["lxt_fx"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def written(header: Header | str, tensors: dict[str, Tensor], folder: Path) -> Path:
    """A file with this header."""
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, str(folder / "crafted.safetensors"), metadata={"lxt_fx": text})
    return folder / "crafted.safetensors"


def load_text(text: str, tensors: dict[str, Tensor], packed: nn.Module | None = None) -> lxt_fx.Explained | str:
    """What `load` makes of a header, or what it says against it. Any other error is raised."""
    try:
        return module_of(read_json(text, "load: it"), tensors, (), (), packed)
    except lxt_fx.InputError as error:
        return str(error)


def code(effect: Path) -> list[str]:
    """Texts that would leave a file if they became code."""
    call = f"open({str(effect)!r}, 'w')"
    double = f'open("{effect}", "w")'
    return [
        f"a = {call}; b", f"x={call}", f"a): {call}\n    #", f"a\n    {call}\n", f'x"); {call}; ("', f"x'); {double}; ('",
        f"__import__('os').system('touch {effect}')", f"[{call}]", f"{{{call}}}", f"a\r{call}", f"a\u2028{call}",
    ]  # fmt: skip


def odd_values(effect: Path) -> list[Any]:
    """Values of every JSON type that a place in a header does not expect."""
    numbers = [0, 1, -1, 7, 2**31, 2**63, -(2**63) - 1, 10**40, 0.5, 1e308, float("nan"), float("inf")]
    texts = ["", "a", "self", "torch", "forward", "a.b", "__class__", "lambda", "s0", "x" * 3000, "\x00", "\ud800"]
    names = ["aten.from_file.default", "aten.add_.Tensor", "aten.save", "operator.pow", "os.system"]
    guards = ["9**9**9**9", "().__class__", "L['x'].size()[0] % 0 == 1", "(" * 300 + "1" + ")" * 300, "-" * 5000 + "1"]
    enum = {"__enum__": True, "fqn": "os:system", "name": "x"}
    nested: Any = []
    for _ in range(300):
        nested = [nested]
    tagged = [{"node": "a"}, {"tuple": []}, {"list": [{"list": []}]}, {"torch": "load"}, {"device": "x"}, {"slice": [1]}]
    return [None, True, False, [], {}, [[]], nested, enum, *numbers, *texts, *names, *guards, *tagged, *code(effect)]


def edited(header: Header, choice: random.Random, values: list[Any]) -> Header:
    """A copy of the header with one to three edits: a value replaced, left out, repeated, moved or renamed."""
    found = json.loads(json.dumps(header))
    for _ in range(choice.choice((1, 1, 1, 2, 3))):
        places = list(_places(found, choice))
        if not places:
            return found
        owner, key = places[-1] if choice.random() < 0.6 else choice.choice(places)
        other, place = choice.choice(places)
        match choice.randrange(5):
            case 0 | 1:
                owner[key] = copy.deepcopy(choice.choice(values))
            case 2:
                owner[key] = copy.deepcopy(other[place])
            case 3:
                del owner[key]
            case _:
                _repeat(owner, key, choice, values)
    return found


def _repeat(owner: Any, key: Any, choice: random.Random, values: list[Any]) -> None:
    """A value twice in a list, or under another key."""
    if isinstance(owner, list):
        owner.insert(choice.randrange(len(owner) + 1), copy.deepcopy(owner[key]))
    else:
        name = choice.choice([value for value in values if isinstance(value, str)])
        owner[name] = owner.pop(key) if choice.random() < 0.5 else copy.deepcopy(owner[key])


def _places(value: Any, choice: random.Random) -> Iterator[tuple[Any, Any]]:
    """Places on one way down through the header, so that small sections are met as often as the long list of nodes."""
    while isinstance(value, (dict, list)) and value:
        key = choice.choice(list(value)) if isinstance(value, dict) else choice.randrange(len(value))
        yield value, key
        value = value[key]


def fuzzed(seconds: float, bases: list[tuple[Header, dict[str, Tensor]]], effect: Path, seed: int = 0) -> Counter[str]:
    """Edits headers for so long. Returns what load said, without the place, by how often. Raises any error but
    InputError."""
    choice, values, said = random.Random(seed), odd_values(effect), Counter[str]()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        header, tensors = choice.choice(bases)
        text = json.dumps(edited(header, choice, values))
        if choice.random() < 0.05:  # cut or damaged text
            at = choice.randrange(len(text))
            rest = text[at + choice.randrange(3) :] if choice.random() < 0.5 else ""
            text = text[:at] + choice.choice(["", "}", "\\", '"', "[" * 50]) + rest
        found = load_text(text, tensors)
        what = re.sub(r"load: it: |\S*\.\S* |'.*'|\d+", "", found)[:60] if isinstance(found, str) else "loaded"
        said[what] += 1
        assert not effect.exists(), text
    return said


def main(seconds: float) -> None:
    """Fuzzes headers of several models, forms and options."""
    from tiny import SIZES, Mlp
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, ViTConfig
    from transformers import ViTForImageClassification as ViT

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, bases = Path(name), []
        one = SIZES | {"num_hidden_layers": 1}
        llama = LlamaForCausalLM(LlamaConfig(**one)).eval()
        bert = BertForSequenceClassification(BertConfig(**one, max_position_embeddings=64)).eval()
        vit = ViT(ViTConfig(**{k: v for k, v in one.items() if k != "vocab_size"}, image_size=8, patch_size=4)).eval()
        bases += [parts_of(lxt_fx.transform(Mlp().eval(), (torch.randn(2, 6),)), folder)] * 3
        for model in (llama, bert, vit):
            bases.append(parts_of(lxt_fx.transform(model, checkpoint="layers"), folder))
        bases.append(parts_of(lxt_fx.transform(llama, form="explicit", rules="cp_lrp", positions="last"), folder))
        said = fuzzed(seconds, bases, folder / "effect", int(time.time()))
    print(f"{said.total()} headers, {said['loaded']} of them loaded")
    for what, count in said.most_common(40):
        print(f"{count:>8}  {what}")


if __name__ == "__main__":
    main(float(sys.argv[1]))
