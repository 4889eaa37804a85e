"""A model whose own forward changes it is after each of our functions what it was before, and is explained as it is."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_net import captures_counted
from torch import Tensor, nn
from transformers import BigBirdConfig, BigBirdForTokenClassification

import lxt_fx
from lxt_fx.base import model_snapshot
from lxt_fx.base.as_it_was import as_it_was

sys.path.insert(0, str(Path(__file__).parent / "zoo"))
from zoo_unchanged import as_it_is, changed

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


class Base(nn.Module):
    """What each model here has beside what its forward does to it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.factor, self.sparse = nn.Linear(4, 4), 2.0, True
        self.config = types.SimpleNamespace(kind="sparse", sizes=[1, 2])
        self.eval()

    def before(self, x: Tensor) -> None:
        """What the forward writes."""

    def forward(self, x: Tensor) -> Tensor:
        self.before(x)
        return torch.tanh(self.linear(x)) * self.factor


class Flips(Base):
    def before(self, x: Tensor) -> None:
        self.sparse = False


class Replaces(Base):
    """As BigBird: another module of the same parts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        if self.sparse:
            self.sparse, self.inner = False, nn.Sequential(self.inner[0])
        return super().forward(self.inner(x))


class Swaps(Base):
    """Another order of its layers, which run in it. Both give the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"a": nn.Identity(), "b": nn.Identity()})

    def forward(self, x: Tensor) -> Tensor:
        self.layers["a"] = self.layers.pop("a")
        return super().forward(self.layers["b"](self.layers["a"](x)))


class Forgets(Base):
    def before(self, x: Tensor) -> None:
        if hasattr(self, "sparse"):
            del self.sparse


class Config(Base):
    def before(self, x: Tensor) -> None:
        self.config.kind = "full"
        self.config.sizes.append(3)


class Counts(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.log = list[int]()

    def before(self, x: Tensor) -> None:
        self.calls += 1
        self.log.append(x.shape[0])


class Saves(Base):
    """The number of the examples of the last call, which is that of the example of `transform` already."""

    def __init__(self) -> None:
        super().__init__()
        self.examples = len(X)

    def before(self, x: Tensor) -> None:
        self.examples = x.shape[0]


class Hooks(Base):
    def before(self, x: Tensor) -> None:
        if not self.linear._forward_hooks:
            self.linear.register_forward_hook(lambda module, args, output: None)


class Builds(Base):
    """A table in each of the ways that models build one at their first call."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = dict[int, Tensor]()
        self.plain: Tensor | None = None
        self.register_buffer("none", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.none is None:
            self.none, self.plain = torch.arange(4.0), torch.arange(4.0) + 1
            self.register_buffer("new", torch.arange(4.0) + 2)
        if 4 not in self.tables:
            self.tables[4] = torch.arange(4.0) + 3
        return super().forward(x * self.new + self.plain - self.none + self.tables[4])


KINDS = (Flips, Replaces, Swaps, Forgets, Config, Counts, Saves, Hooks, Builds)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_changes_itself_is_as_it_was_and_what_it_writes_is_no_change(kind: type[Base]) -> None:
    model, other = kind(), torch.randn(5, 4)
    before = as_it_is(model)
    explained = lxt_fx.transform(model, (X,))
    assert not changed(before, model)
    torch.testing.assert_close(explained(X), kind()(X))
    for given in (X, other):  # the user's own calls, which do change the model
        torch.testing.assert_close(explained(given), model(given))
    with captures_counted() as captured:
        lxt_fx.transform(model, (X,))
    assert not captured or kind is Swaps, "what the forward writes is no other model"
    model.factor = 3.0
    with pytest.raises(lxt_fx.ModelChangedError, match=r"factor is 3.0 .it was 2.0"):
        explained(X)


@pytest.mark.parametrize("kind", KINDS)
def test_the_models_of_this_page_do_change_themselves(kind: type[Base]) -> None:
    model = kind()
    before = as_it_is(model)
    model(torch.randn(5, 4))
    assert changed(before, model)


def test_what_the_user_puts_in_the_place_of_what_the_forward_builds_is_a_change() -> None:
    for put in (
        lambda model: setattr(model.inner, "0", nn.Linear(4, 4)),
        lambda model: setattr(model, "inner", nn.Sequential(nn.Linear(4, 4))),
        lambda model: setattr(model, "inner", nn.Identity()),
    ):
        model = Replaces()
        explained = lxt_fx.transform(model, (X,))
        model(X)
        explained(X)
        put(model)
        with pytest.raises(lxt_fx.ModelChangedError, match="inner"):
            explained(X)
    built = Builds()
    explained = lxt_fx.transform(built, (X,))
    built.none = torch.arange(4.0) * 2
    with pytest.raises(lxt_fx.ModelChangedError, match="none is Tensor"):
        explained(X)


class Raises(Base):
    """Raises once it has changed itself, as a model that takes no such input."""

    def before(self, x: Tensor) -> None:
        self.sparse, self.extra, self.linear = False, nn.Linear(4, 4), nn.Linear(4, 4)
        self.config.sizes.clear()
        raise ValueError("too short")


def test_a_model_that_raises_after_it_changed_itself_is_as_it_was() -> None:
    model = Raises()
    before = as_it_is(model)
    with pytest.raises(lxt_fx.InputError, match="too short"):
        lxt_fx.transform(model, (X,))
    assert not changed(before, model)


class RaisesWhenExported(Base):
    def before(self, x: Tensor) -> None:
        if torch.compiler.is_compiling():
            self.sparse, self.config.table, self.factor = False, x * 2, 3.0
            raise ValueError("not to be exported")


def test_an_export_that_fails_leaves_no_trace() -> None:
    """Neither in the model, nor in the graph that is then captured in another way."""
    model = RaisesWhenExported()
    before = as_it_is(model)
    explained = lxt_fx.transform(model, (X,))
    assert explained.record.method == "make_fx" and not changed(before, model)
    torch.testing.assert_close(explained(X), model(X))


class Draws(Base):
    """Makes a layer at its first call, with weights that it draws."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "late"):  # as a call of its own would draw them, and no run of ours
            self.late = nn.Linear(4, 4)
        return super().forward(self.late(x))


@pytest.mark.parametrize("make", [Draws, lambda: nn.Sequential(nn.LazyLinear(4), nn.Tanh())])
def test_parameters_that_a_first_call_would_draw_are_refused(make: Callable[[], nn.Module]) -> None:
    model = make()
    with pytest.raises(lxt_fx.InputError, match="makes its parameters .* in its first call"):
        lxt_fx.transform(model, (X,))
    expected = model(X)
    torch.testing.assert_close(lxt_fx.transform(model, (X,))(X), expected)


class Chooses(Base):
    """An attention for long texts and one for short ones, which it changes to for good: BigBird's way."""

    def forward(self, x: Tensor) -> Tensor:
        if self.sparse and x.shape[1] <= 20:
            self.before(x)
            self.sparse = False
        return self.factor * torch.tanh(self.linear(x)).sum(1) * (3.0 if self.sparse else 1.0)


def test_what_another_length_writes_is_no_setting_of_a_graph_for_this_one() -> None:
    """Calls with a part of the text write `sparse`; the graph of a long text reads it, and answers as the model does."""
    model, text = Chooses(), torch.randn(2, 24, 4)
    expected = model(text)
    long = lxt_fx.transform(model, (text,))
    torch.testing.assert_close(long(text), expected)
    torch.testing.assert_close(model(text), expected)
    short = lxt_fx.transform(Chooses(), (text[:, :6],))
    torch.testing.assert_close(short(text[:, :6]), Chooses()(text[:, :6]))
    model(text[:, :6])
    with pytest.raises(lxt_fx.ModelChangedError, match="sparse is False"):
        long(text)


class ChoosesUnseen(Chooses):
    """The same, and it cannot be exported where it chooses: once it has chosen, no guard says for which lengths."""

    def before(self, x: Tensor) -> None:
        if self.sparse and torch.compiler.is_compiling():
            raise ValueError("not to be exported")


def test_a_model_that_cannot_be_exported_where_it_chooses_has_fixed_sizes() -> None:
    text = torch.randn(2, 24, 4)
    explained = lxt_fx.transform(ChoosesUnseen(), (text[:, :6],))
    torch.testing.assert_close(explained(text[:, :6]), ChoosesUnseen()(text[:, :6]))
    with pytest.raises(lxt_fx.CallError, match="captured for"):
        explained(text)


def test_every_function_that_runs_the_model_puts_it_back() -> None:
    model = Counts()
    before = as_it_is(model)
    lxt_fx.explain(model, None, X[:1])
    assert not changed(before, model)


def test_a_large_tensor_or_parameter_that_is_written_in_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counts()
    monkeypatch.setattr(model_snapshot, "MOST_BYTES", 3)
    with pytest.warns(UserWarning, match="its own forward writes into calls in place"), as_it_was(model):
        model(X)
    clamped = nn.Embedding(5, 4, max_norm=1e-3)
    with pytest.warns(UserWarning, match="its own forward writes into weight in place"), as_it_was(clamped):
        clamped(torch.tensor([1]))


class Remembers(nn.Module):
    """Holds what an earlier call gave, with its autograd graph, and a buffer that is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("missing", torch.full((2,), torch.nan))
        self.seen = self.linear(X).softmax(-1)
        self.part = self.seen[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def test_what_a_model_holds_of_an_earlier_call_stays_as_it_is() -> None:
    model = Remembers()
    graphs = model.seen.grad_fn, model.part.grad_fn
    with as_it_was(model) as written:
        model(X)
    assert not written and (model.seen.grad_fn, model.part.grad_fn) == graphs
    lxt_fx.transform(model, (X,))
    assert (model.seen.grad_fn, model.part.grad_fn) == graphs
    model.seen.sum().backward()
    assert model.linear.weight.grad is not None


def test_another_thread_waits_until_a_model_is_as_it_was() -> None:
    model, order = Counts(), []

    def other() -> None:
        with as_it_was(model):
            order.append("other")

    thread = threading.Thread(target=other)
    with as_it_was(model):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def big_bird() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sparse = {"attention_type": "block_sparse", "block_size": 2, "num_random_blocks": 1}
    torch.manual_seed(0)
    config = BigBirdConfig(vocab_size=20, max_position_embeddings=40, initializer_range=0.5, **sizes, **sparse)
    return BigBirdForTokenClassification(config).eval()


LONG = torch.randint(3, 20, (1, 24), generator=torch.Generator().manual_seed(2))


def test_big_bird_has_its_own_attention_after_transform_on_a_short_text() -> None:
    model = big_bird()
    before = as_it_is(model)
    with torch.no_grad():
        expected = model(LONG).logits
        explained = lxt_fx.transform(model)
        assert not changed(before, model)
        torch.testing.assert_close(model(LONG).logits, expected)
        torch.testing.assert_close(explained(LONG[:, :8]).logits, big_bird()(LONG[:, :8]).logits)
        with pytest.warns(UserWarning, match="a graph for such inputs is captured now"):
            found = explained(LONG).logits
        torch.testing.assert_close(found, expected)
        assert not changed(before, model)
        model(LONG[:, :8])
        assert not torch.allclose(model(LONG).logits, expected), "it has chosen its other attention"
        torch.testing.assert_close(explained(LONG[:, :8]).logits, big_bird()(LONG[:, :8]).logits)


@pytest.mark.slow("captured at once; the test above captures the same graph when it is called")
def test_big_bird_on_a_long_text_is_explained_with_its_sparse_attention() -> None:
    model = big_bird()
    before = as_it_is(model)
    with torch.no_grad():
        expected = model(LONG).logits
        explained = lxt_fx.transform(model, kwargs={"input_ids": LONG})
        torch.testing.assert_close(explained(LONG).logits, expected)
        assert not changed(before, model)
        model(LONG[:, :8])
        with pytest.raises(lxt_fx.ModelChangedError, match="attention"):
            explained(LONG)
