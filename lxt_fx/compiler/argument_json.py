"""Arguments of a graph's nodes as JSON, and back: each is checked against the schema of the op that takes it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch.fx import Node

from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import TensorType, value
from lxt_fx.base.saved_json import Saved
from lxt_fx.base.torch_internals import OpOverload, argument_types, base_name

DEEPEST = 8
"""How deep lists may lie in one another."""
LARGEST = 2**31
"""The largest size of a tensor that a file may write as a number, and the most elements by such sizes in one argument."""
MOST_BITS = 4096
"""How long a whole number that a graph computes from sizes may get."""

MOST_SCALED = 2**16
"""How many times larger an image may get by factors in a file."""
_SHAPES = ("size", "shape", "repeats", "dims", "output_size", "pad", "s")
"""Arguments whose numbers multiply to a number of elements."""
_FACTORS = "List[float]]"
"""The type of factors to enlarge an image by."""

END = 2**63 - 1
"""What torch writes for the end of a slice that has none."""

TORCH_NAMES: dict[str, Any] = {
    str(found).removeprefix("torch."): found
    for found in vars(torch).values()
    if isinstance(found, (torch.dtype, torch.memory_format, torch.layout))
}
"""Dtypes, layouts and memory formats by name."""
DTYPES: dict[str, torch.dtype] = {name: found for name, found in TORCH_NAMES.items() if isinstance(found, torch.dtype)}
_DEVICE = re.compile(r"(cpu|cuda|meta|mps|xpu|hpu|xla)(:\d{1,3})?")


def encoded(argument: Any) -> Any:
    """JSON of an argument: plain values as they are, everything else tagged. Raises InputError for other values."""
    if isinstance(argument, Node):
        return {"node": argument.name}
    if isinstance(argument, (list, tuple)):
        return {"tuple" if isinstance(argument, tuple) else "list": [encoded(item) for item in argument]}
    if isinstance(argument, slice):
        return {"slice": [encoded(part) for part in (argument.start, argument.stop, argument.step)]}
    if isinstance(argument, (torch.dtype, torch.memory_format, torch.layout)):
        return {"torch": str(argument).removeprefix("torch.")}
    if isinstance(argument, torch.device):
        return {"device": str(argument)}
    if isinstance(argument, complex):
        return {"complex": [encoded(argument.real), encoded(argument.imag)]}
    if isinstance(argument, float) and not math.isfinite(argument):
        return {"float": str(argument)}
    if argument is None or isinstance(argument, (bool, int, float, str)):
        return argument
    raise InputError(f"save: an argument {argument!r} of type {type(argument).__name__} cannot be written")


def encoded_or_text(argument: Any) -> Any:
    """JSON of an argument that is only printed: what cannot be written stands as text."""
    if isinstance(argument, (list, tuple)):
        return {"tuple" if isinstance(argument, tuple) else "list": [encoded_or_text(item) for item in argument]}
    try:
        return encoded(argument)
    except InputError:
        return ascii(str(argument))[1:-1][:1000]


def decoded(saved: Saved, nodes: Mapping[str, Node], depth: int = 0) -> Any:
    """The argument that `encoded` wrote, with the nodes of these names. Raises InputError for anything else."""
    if not isinstance(saved.value, dict):
        return saved.plain()
    if depth == DEEPEST:
        saved.fail(f"lies deeper than {DEEPEST} lists")
    if len(saved.value) != 1:
        saved.fail("must be a plain value, or an object with one key")
    ((tag, content),) = saved.entries().items()
    if tag == "node":
        if content.text() not in nodes:
            content.fail(f"is {content.text(200)!r}, and no earlier node has this name")
        return nodes[content.text()]
    if tag in ("list", "tuple"):
        items = [decoded(item, nodes, depth + 1) for item in content.parts()]
        return items if tag == "list" else tuple(items)
    reader = _READERS.get(tag)
    return content.fail("has no known kind") if reader is None else reader(content, nodes, depth)


def _slice(content: Saved, nodes: Mapping[str, Node], depth: int) -> slice:
    parts = [decoded(item, nodes, depth + 1) for item in content.parts(3)]
    if len(parts) != 3 or not all(part is None or _is_whole(part) or isinstance(part, Node) for part in parts):
        content.fail("must be three whole numbers, nodes or nulls")
    return slice(*parts)


def _device(content: Saved, nodes: Mapping[str, Node], depth: int) -> torch.device:
    if not _DEVICE.fullmatch(content.text(100)):
        content.fail("is no device")
    return torch.device(content.text())


def _complex(content: Saved, nodes: Mapping[str, Node], depth: int) -> complex:
    parts = [decoded(item, nodes, depth + 1) for item in content.parts(2)]
    if len(parts) != 2 or not all(_is_number(part) and not isinstance(part, complex) for part in parts):
        content.fail("must be two numbers")
    return complex(*parts)


_READERS: dict[str, Callable[[Saved, Mapping[str, Node], int], Any]] = {
    "slice": _slice,
    "torch": lambda content, nodes, depth: content.one_of(TORCH_NAMES),
    "device": _device,
    "complex": _complex,
    "float": lambda content, nodes, depth: content.one_of({str(x): x for x in (math.inf, -math.inf, math.nan)}),
}


def check_call(saved: Saved, op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises InputError, in the name of the node, unless the op's schema takes these arguments, and with them the op
    neither writes into one nor makes a tensor of a size without bound."""
    schema = argument_types(op)
    positional = [name for name, argument in schema.items() if not argument.by_name_only]
    if len(args) > len(positional):
        saved.fail(f"gives {op} {len(args)} arguments; it takes {len(positional)}")
    given = dict(zip(positional, args, strict=False))
    for name in kwargs:
        if name not in schema or name in given:
            why = "is there already" if name in given else "it does not take"
            saved.fail(f"gives {op} the argument {name[:60]!r}, which {why}")
    given |= kwargs
    for name, argument in schema.items():
        if name not in given:
            if argument.required:
                saved.fail(f"gives {op} no {name}")
            continue
        if not (_fits(given[name], argument.type) or (argument.repeats and _fits(given[name], argument.type[5:-1]))):
            saved.fail(f"gives {op} a {name} that is no {argument.type}")
        if not _is_bounded(given[name], name, argument.type):
            saved.fail(f"gives {op} a {name} of more than {LARGEST} elements")
    _check_pure(saved, op, given)


def _check_pure(saved: Saved, op: OpOverload, given: Mapping[str, Any]) -> None:
    """Refuses what an op does only with some arguments, and no schema says."""
    statistics = any(given.get(name) is not None for name in ("running_mean", "running_var"))
    if statistics and (given.get("training", False) is not False or given.get("use_input_stats", False) is not False):
        saved.fail(f"lets {op} write into its running statistics")
    if given.get("pin_memory") not in (None, False):
        saved.fail(f"lets {op} pin memory")
    sizes = [given[name] for name in ("start", "end", "step", "steps") if _is_number(given.get(name))]
    if base_name(op) in ("arange", "linspace", "logspace") and not _is_short(sizes, given.get("step", 1)):
        saved.fail(f"lets {op} make more than {LARGEST} elements")


def _is_short(numbers: Sequence[Any], step: Any) -> bool:
    if any(isinstance(number, complex) or not math.isfinite(number) for number in numbers):
        return False
    smallest = abs(step) if _is_number(step) and step else 1
    return all(abs(number) <= LARGEST * min(smallest, 1) for number in numbers)


def _fits(given: Any, kind: str) -> bool:
    """Whether a schema's type takes the argument. Of a node it is known only whether it is one tensor, several, or a
    number."""
    if kind.startswith("Optional["):
        return given is None or _fits(given, kind[9:-1])
    if kind.startswith("List["):
        if isinstance(given, (list, tuple)):
            return all(_fits(item, kind[5:-1]) for item in given)
        return isinstance(given, Node) and isinstance(value(given), tuple)
    test = _TESTS.get(kind)
    return test is not None and bool(test(given))


def _is_number(given: Any) -> bool:
    return isinstance(given, (bool, int, float, complex))


def _is_whole(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)


def _is_value(given: Any) -> bool:
    return isinstance(given, Node) and not isinstance(value(given), tuple)


def _is_size(given: Any) -> bool:
    return _is_value(given) and not isinstance(value(given), TensorType)


_TESTS: dict[str, Callable[[Any], bool]] = {
    "Tensor": lambda given: _is_value(given) or _is_number(given),
    "int": lambda given: isinstance(given, int) or _is_value(given),
    "SymInt": lambda given: isinstance(given, int) or _is_value(given),
    "float": lambda given: (_is_number(given) and not isinstance(given, complex)) or _is_value(given),
    "number": lambda given: _is_number(given) or _is_value(given),
    "bool": lambda given: isinstance(given, bool) or _is_size(given),
    "str": lambda given: isinstance(given, str),
    "ScalarType": lambda given: isinstance(given, torch.dtype),
    "Layout": lambda given: isinstance(given, torch.layout),
    "MemoryFormat": lambda given: isinstance(given, torch.memory_format),
    "Device": lambda given: isinstance(given, torch.device),
}
"""What each type of a schema takes. Other types (generators, storages, streams, objects of C++) no file can give but as
null."""


def _is_bounded(given: Any, name: str, kind: str) -> bool:
    """Whether the sizes that an argument writes as numbers are within `LARGEST`, for a shape their product too."""
    if kind.endswith(_FACTORS) and isinstance(given, (list, tuple)):
        return math.prod(abs(item) for item in given if isinstance(item, (int, float))) <= MOST_SCALED
    if not kind.removeprefix("Optional[").removeprefix("List[").startswith(("int", "SymInt")):
        return True
    if not isinstance(given, (list, tuple)):
        return not _is_whole(given) or given == END or abs(given) <= LARGEST
    sizes = [max(abs(item), 1) for item in given if _is_whole(item)]
    return all(size <= LARGEST or size == END for size in sizes) and (name not in _SHAPES or math.prod(sizes) <= LARGEST)


class Sizes:
    """How long the whole numbers that a graph computes from sizes may get, in bits: a chain of squares would fill the
    memory."""

    def __init__(self) -> None:
        self.bits: dict[Node, int] = {}

    def check(self, saved: Saved, node: Node) -> None:
        """Notes the result of a function on sizes. Raises InputError if it may be longer than `MOST_BITS`."""
        name = getattr(node.target, "__name__", "")
        operands = list(self._operands(node.args))
        longest = max(operands, default=1)
        bits = {"add": longest + 1, "sub": longest + 1, "mul": sum(operands), "sym_sum": longest + len(operands)}
        if name == "pow":
            exponent = node.args[1]
            if not isinstance(exponent, int) or not 0 <= exponent <= 64:
                _too_long(saved)
            bits["pow"] = longest * max(exponent, 1)
        self.bits[node] = bits.get(name, longest)
        if self.bits[node] > MOST_BITS:
            _too_long(saved)

    def _operands(self, given: Any) -> Iterator[int]:
        if isinstance(given, (list, tuple)):
            for item in given:
                yield from self._operands(item)
        elif isinstance(given, Node):
            yield self.bits.get(given, 64)
        else:
            yield max(given.bit_length(), 1) if isinstance(given, int) else 64


def _too_long(saved: Saved) -> NoReturn:
    saved.fail(f"may compute a whole number of more than {MOST_BITS} bits")
