"""torch's LSTM, GRU and RNN, as cells, sequences and packed sequences, and triangular systems, against slow loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import recurrent_loops as loops
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import lxt_fx
from lxt_fx.ops import recurrences

LENGTHS = torch.tensor([2, 3])
TABLES = ("attnlrp", "cp_lrp", "mamba_lrp", "relp", "lxt")


def draw(*shape: int, seed: int = 1) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Sequence(nn.Module):
    """A layer on [batch, steps, in]; returns its outputs and last states, whose first dim is the batch."""

    def __init__(self, kind: str, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        name, self.lengths = kind.split("_")[0].upper(), settings.pop("lengths", None)
        nonlinearity = {"nonlinearity": kind.split("_")[1]} if name == "RNN" else {}
        self.kind, self.layer = kind, getattr(nn, name)(4, 3, batch_first=True, **settings, **nonlinearity)
        self.double().eval().requires_grad_(False)  # torch rounds otherwise where weights ask for a gradient

    def forward(self, x: Tensor, h: Tensor | None = None, c: Tensor | None = None) -> tuple[Tensor, ...]:
        states = None if h is None else h.transpose(0, 1) if c is None else (h.transpose(0, 1), c.transpose(0, 1))
        if self.lengths is not None:
            x = pack_padded_sequence(x, self.lengths, batch_first=True, enforce_sorted=False)
        y, last = self.layer(x, states)
        y = y if self.lengths is None else pad_packed_sequence(y, batch_first=True)[0]
        return y, *(part.transpose(0, 1) for part in (last if isinstance(last, tuple) else (last,)))


class Cell(nn.Module):
    """A cell on [batch, in] and states [batch, hidden], as a sequence of one step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        name = kind.split("_")[0].upper()
        nonlinearity = {"nonlinearity": kind.split("_")[1]} if name == "RNN" else {}
        self.kind, self.lengths, self.layer = kind, None, getattr(nn, f"{name}Cell")(4, 3, **nonlinearity)
        self.double().eval().requires_grad_(False)  # torch rounds otherwise where weights ask for a gradient

    def forward(self, x: Tensor, h: Tensor, c: Tensor | None = None) -> tuple[Tensor, ...]:
        h = h[:, 0]
        found = self.layer(x[:, 0], h if c is None else (h, c[:, 0]))
        found = found if isinstance(found, tuple) else (found,)
        return found[0][:, None], *(part[:, None] for part in found)


SEQUENCES: dict[str, Callable[[], Sequence | Cell]] = {
    **{kind: lambda kind=kind: Sequence(kind) for kind in loops.STEPS},
    **{f"{kind}_cell": lambda kind=kind: Cell(kind) for kind in loops.STEPS},
    **{f"{kind}_packed": lambda kind=kind: Sequence(kind, lengths=LENGTHS, bidirectional=True) for kind in loops.STEPS},
    "lstm_deep": lambda: Sequence("lstm", num_layers=2, bidirectional=True, proj_size=2, bias=False),
    "gru_deep": lambda: Sequence("gru", num_layers=2, bidirectional=True),
}
every_net = pytest.mark.parametrize("name", SEQUENCES)


def inputs_of(net: Sequence | Cell) -> tuple[Tensor, ...]:
    """Values and first states that carry."""
    layer: Any = net.layer
    count = getattr(layer, "num_layers", 1) * (2 if getattr(layer, "bidirectional", False) else 1)
    width = getattr(layer, "proj_size", 0) or 3
    x = draw(2, 1 if isinstance(net, Cell) else 3, 4)
    states = (draw(2, count, width, seed=2), draw(2, count, 3, seed=3)) if net.kind == "lstm" else (draw(2, count, 3),)
    return (x, *states)


def by_the_paper(net: Sequence | Cell, inputs: tuple[Tensor, ...], r: list[Tensor]) -> list[Tensor]:
    """The relevance of the inputs, one example after the other."""
    layer: Any = net.layer
    params = list(layer.parameters())
    projects, directions = bool(getattr(layer, "proj_size", 0)), 2 if getattr(layer, "bidirectional", False) else 1
    count = inputs[1].shape[1]
    layers = loops.layers_of(params, len(params) // count, projects)
    found = [torch.zeros_like(x) for x in inputs]
    for example in range(2):
        steps = inputs[0].shape[1] if net.lengths is None else int(net.lengths[example])
        starts = [tuple(part[example, index].tolist() for part in inputs[1:]) for index in range(count)]
        of_last = [tuple(part[example, index].tolist() for part in r[1:]) for index in range(count)]
        text, of_outputs = inputs[0][example, :steps].tolist(), r[0][example, :steps].tolist()
        r_text, r_first = loops.recurrence(net.kind, text, starts, layers, directions, of_outputs, of_last)
        found[0][example, :steps] = torch.tensor(r_text, dtype=torch.float64)
        for index, state in enumerate(r_first):
            for whole, part in zip(found[1:], state, strict=True):
                whole[example, index] = torch.tensor(part, dtype=torch.float64)
    return found


def relevance(module: nn.Module, inputs: tuple[Tensor, ...], g: list[Tensor], *, explicit: bool = False) -> list[Tensor]:
    """Of each input, for the gradients g of the outputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    outputs = module(*leaves)
    seeds = [o.detach() * seed for o, seed in zip(outputs, g, strict=True)] if explicit else g
    found = torch.autograd.grad(outputs, leaves, seeds)
    return list(found) if explicit else [x.detach() * gradient for x, gradient in zip(leaves, found, strict=True)]


def assert_same(found: list[Tensor], expected: list[Tensor], limit: float = 1e-10) -> None:
    largest = max(float(x.abs().max()) for x in expected)
    assert max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) <= limit * largest


def targets(outputs: Any, g: list[Tensor]) -> Tensor:
    return torch.stack([(o * seed).flatten(1).sum(1) for o, seed in zip(outputs, g, strict=True)]).sum(0)


@every_net
def test_both_forms_follow_arras_and_the_ledger_closes(name: str) -> None:
    net = SEQUENCES[name]()
    inputs = inputs_of(net)
    with torch.no_grad():
        outputs = net(*inputs)
    g = [draw(*output.shape, seed=7 + index) for index, output in enumerate(outputs)]
    expected = by_the_paper(net, inputs, [o * seed for o, seed in zip(outputs, g, strict=True)])
    fast = lxt_fx.transform(net, inputs)
    exact = lxt_fx.transform(net, inputs, form="explicit", epsilon=0.0)
    for module in (fast, exact):
        assert all(torch.equal(a, b) for a, b in zip(module(*inputs), outputs, strict=True))
    assert_same(relevance(fast, inputs, g), expected)
    assert_same(relevance(exact, inputs, g, explicit=True), expected)
    ledger = lxt_fx.audit(fast, inputs, lambda found: targets(found, g))
    ledger.check()
    assert {entry.cause for entry in ledger.entries if bool((entry.amount.abs() > 1e-9).any())} <= {lxt_fx.Cause.BIAS}


@every_net
def test_the_plain_gradient_is_that_of_the_model(name: str) -> None:
    net = SEQUENCES[name]()
    inputs = inputs_of(net)
    g = [draw(*output.shape, seed=7) for output in net(*inputs)]
    assert_same(relevance(lxt_fx.transform(net, inputs, rules="gradient"), inputs, g), relevance(net, inputs, g), 1e-8)


@pytest.mark.parametrize("name", ["lstm_deep", "gru_packed"])
def test_epsilon_is_the_same_in_both_forms_and_the_ledger_has_its_share(name: str) -> None:
    net = SEQUENCES[name]()
    inputs = inputs_of(net)
    g = [draw(*output.shape, seed=7) for output in net(*inputs)]
    fast = lxt_fx.transform(net, inputs, epsilon=0.1)
    found = relevance(fast, inputs, g)
    exact = lxt_fx.transform(net, inputs, form="explicit", epsilon=0.1)
    assert_same(relevance(exact, inputs, g, explicit=True), found)
    plain = relevance(lxt_fx.transform(net, inputs), inputs, g)
    assert max(float((a - b).abs().max()) for a, b in zip(plain, found, strict=True)) > 1e-3
    ledger = lxt_fx.audit(fast, inputs, lambda outputs: targets(outputs, g))
    ledger.check()
    assert any(entry.cause is lxt_fx.Cause.EPSILON and bool(entry.amount.any()) for entry in ledger.entries)


def test_a_state_that_carries_nothing_takes_its_share() -> None:
    class Started(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.start = nn.GRU(4, 3, bias=False), nn.Parameter(torch.randn(1, 2, 3))
            self.double().eval()

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layer(x, self.start)[0][-1]
            return found

    x = draw(3, 2, 4)
    ledger = lxt_fx.audit(lxt_fx.transform(Started(), (x,)), x, lambda output: output.sum())
    ledger.check()
    (entry,) = [entry for entry in ledger.entries if entry.name == "start"]
    assert entry.cause is lxt_fx.Cause.CONSTANT
    torch.testing.assert_close(ledger.value - ledger.relevance, entry.amount)


@pytest.mark.parametrize("kind", loops.STEPS)
def test_the_number_of_steps_is_free(kind: str) -> None:
    net = Sequence(kind, num_layers=2, bidirectional=True)
    explained = lxt_fx.transform(net, (draw(2, 3, 4),))
    assert explained.record.specialised == ()
    for longer in (draw(1, 7, 4), draw(3, 2, 4)):
        with torch.no_grad():
            assert all(torch.equal(a, b) for a, b in zip(explained(longer), net(longer), strict=True))


def test_an_lstm_is_one_line_of_the_printed_graph() -> None:
    text = lxt_fx.show(lxt_fx.transform(Sequence("lstm"), (draw(2, 3, 4),)))
    assert "lxt_fx.lstm(%x" in text and "| gated recurrence" in text and "Arras et al. 2017" in text


def test_dropout_between_layers_is_refused_in_training_mode() -> None:
    net = Sequence("lstm", num_layers=2, dropout=0.5)
    lxt_fx.transform(net, (draw(2, 3, 4),))
    with pytest.raises(lxt_fx.InputError, match="drops values at random"):
        lxt_fx.transform(net.train(), (draw(2, 3, 4),))


def test_a_cell_whose_weights_carry_is_written_out() -> None:
    class Written(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.gru_cell(x, x, torch.cat([x, x, x]), torch.cat([x, x, x]))

    explained = lxt_fx.transform(Written().eval(), (x := draw(2, 2),))
    assert explained.record.written_out[0].startswith("%gru_cell = aten.gru_cell.default as linear,")
    assert not lxt_fx.audit(explained, x, lambda output: output.sum()).faults()


@pytest.mark.parametrize("op", recurrences.OF.values(), ids=str)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_ops_compile_and_take_batched_gradients(op: Any) -> None:
    aten = next(key for key, ours in recurrences.OF.items() if ours is op)
    name = str(op).split(".")[1]
    gates = {"lstm": 4, "gru": 3}.get(name.split("_")[0], 1)
    x, state = draw(2, 4).requires_grad_(), draw(2, 3, seed=2).requires_grad_()
    weights = draw(gates * 3, 4, seed=3), draw(gates * 3, 3, seed=4), draw(gates * 3, seed=5), draw(gates * 3, seed=6)
    if name.endswith("_cell"):
        arguments: tuple[Any, ...] = (x, [state, state] if gates == 4 else state, *weights)
    else:
        states = [state[None], state[None]] if gates == 4 else state[None]
        settings = (list(weights), True, 1, 0.0, False, False)
        arguments = (x, torch.tensor([2]), states, *settings) if "packed" in name else (x[None], states, *settings, False)

    def run() -> Tensor:
        found = op(*arguments)
        return found if isinstance(found, Tensor) else found[0]

    value = run()
    plain = aten(*arguments)
    assert torch.equal(value, plain if isinstance(plain, Tensor) else plain[0])
    seeds = draw(2, *value.shape, seed=8)
    each = [torch.autograd.grad(run(), (x, state), seed) for seed in seeds]
    both = torch.autograd.grad(value, (x, state), seeds, is_grads_batched=True)
    for index in range(2):
        assert_same([part[index] for part in both], list(each[index]))
    if "packed" in name:
        return  # the sizes of a packed sequence are values, which no compiled graph can read
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")()
    torch.testing.assert_close(torch.autograd.grad(compiled, (x, state), seeds[0]), each[0])


class Delta(nn.Module):
    """The gated delta rule on one chunk of tokens, as Qwen3.5 has it: by a triangular system, or by its inverse row by
    row."""

    def __init__(self, *, solves: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.solves, self.project = solves, nn.Linear(4, 14, bias=False)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(self.project(x))

    def mixed(self, projected: Tensor) -> Tensor:
        """The outputs of all tokens."""
        q, k, v, beta, decay = projected.split([4, 4, 4, 1, 1], -1)
        k, beta = nn.functional.normalize(k, dim=-1), beta.sigmoid()
        total = -nn.functional.softplus(decay[..., 0]).cumsum(1)
        later = torch.ones(v.shape[1], v.shape[1], dtype=torch.bool).triu(1)
        decays = (total[:, :, None] - total[:, None]).masked_fill(later, -torch.inf).exp()
        system, read = (k * beta) @ k.mT * decays, q @ k.mT * decays
        if self.solves:
            return read @ torch.linalg.solve_triangular(system, v * beta, upper=False, unitriangular=True)
        system = -system.tril(-1)
        for i in range(1, v.shape[1]):
            row, above = system[..., i, :i].clone(), system[..., :i, :i].clone()
            system[..., i, :i] = row + (row.unsqueeze(-1) * above).sum(-2)
        return read @ ((system + torch.eye(v.shape[1], dtype=v.dtype)) @ (v * beta))


@pytest.mark.parametrize("table", TABLES[:3])
def test_the_chunk_of_a_delta_rule_is_linear_in_its_values(table: str) -> None:
    """MambaLRP holds all but what is written to the state: relevance is v * dy/dv, back through the projection of v."""
    x, found = draw(2, 4, 4), []
    for solves in (True, False):
        net = Delta(solves=solves)
        explained = lxt_fx.transform(net, (x,), rules=table, dynamic=False)
        leaf = x.clone().requires_grad_()
        found.append(leaf.detach() * torch.autograd.grad(explained(leaf)[0, -1, 2], leaf)[0])
        q_k, v, rates = net.project(x).detach().split([8, 4, 2], -1)
        v.requires_grad_()
        (of_v,) = torch.autograd.grad(net.mixed(torch.cat([q_k, v, rates], -1))[0, -1, 2], v)
        found.append(x * (of_v @ net.project.weight.detach()[8:12]))
    for each in found[1:]:
        assert_same([each], [found[0]])


def test_a_triangular_system_has_its_matrix_held_in_both_forms() -> None:
    class Solved(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(a, b, upper=True)

    a, b = draw(3, 3).triu() + 3 * torch.eye(3, dtype=torch.float64), draw(3, 2, seed=2)
    g = draw(3, 2, seed=3)
    expected = b * (torch.linalg.inv(a).mT @ g)
    fast = lxt_fx.transform(Solved(), (a, b))
    assert_same(relevance_of_one(fast, a, b, g), [torch.zeros_like(a), expected])
    exact = lxt_fx.transform(Solved(), (a, b), form="explicit", epsilon=0.0)
    leaves = a.clone().requires_grad_(), b.clone().requires_grad_()
    y = exact(*leaves)
    (found,) = torch.autograd.grad(y, leaves[1:], y.detach() * g)
    assert_same([found], [expected])
    plain = relevance_of_one(lxt_fx.transform(Solved(), (a, b), rules="gradient"), a, b, g)
    assert_same(plain, relevance_of_one(Solved(), a, b, g), 1e-8)

    class Inverse(nn.Module):
        def forward(self, a: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(a, torch.eye(3, dtype=a.dtype), upper=True)

    with pytest.raises(lxt_fx.NoRuleError, match="only the matrix carries"):
        lxt_fx.transform(Inverse(), (a,))


def relevance_of_one(module: nn.Module, a: Tensor, b: Tensor, g: Tensor) -> list[Tensor]:
    """Relevance of two inputs, zeros where nothing passes."""
    leaves = a.clone().requires_grad_(), b.clone().requires_grad_()
    found = torch.autograd.grad(module(*leaves), leaves, g, allow_unused=True, materialize_grads=True)
    return [leaf.detach() * gradient for leaf, gradient in zip(leaves, found, strict=True)]
