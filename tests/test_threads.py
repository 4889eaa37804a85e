"""Calls, `watch`, hooks and captures in several threads at once, and in a forked process: the numbers of one alone."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny
import torch
from shared_captures import explained as explained_of
from test_recapture import Reading
from torch import Tensor, nn

import lxt_fx
from lxt_fx.base import one_capture
from lxt_fx.compiler.hooks import HookFlag, hooked_now


@pytest.fixture(autouse=True)
def threads_in_turns() -> Iterator[None]:
    """Threads give way to one another as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def in_threads(*jobs: Callable[[], Any]) -> list[Any]:
    """What the jobs return that run at the same time, each in a thread. Raises the first error of one."""
    results: dict[int, Any] = {}

    def run(index: int, job: Callable[[], Any]) -> None:
        try:
            results[index] = job()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    return [results[index] for index in range(len(jobs))]


def embeds(index: int) -> Tensor:
    draw = torch.Generator().manual_seed(index)
    return torch.randn(1 + index % 2, 4 + index, 32, generator=draw).requires_grad_(True)


def by_call(explained: lxt_fx.Explained, index: int) -> Tensor:
    leaf = embeds(index)
    logits = explained(inputs_embeds=leaf).logits[:, -1, 7]
    logits.backward(logits.detach() if explained.record.form == "explicit" else torch.ones_like(logits))
    assert leaf.grad is not None
    return leaf.grad


def by_watch(explained: lxt_fx.Explained, index: int) -> Tensor:
    with lxt_fx.watch(explained, "model.layers.*") as inside:
        by_call(explained, index)
        return torch.cat([inside[name].relevance.flatten() for name in inside])


def by_relevance_of(explained: lxt_fx.Explained, index: int) -> Tensor:
    return lxt_fx.relevance_of(explained, {"inputs_embeds": embeds(index).detach()}, [3, 5])


@pytest.mark.parametrize("options", [{}, {"form": "explicit"}, {"positions": "last"}, {"checkpoint": "layers"}], ids=str)
def test_four_threads_get_the_numbers_of_one(options: dict[str, Any]) -> None:
    """To the bit: a watched call runs another graph than a plain one, and rounds otherwise."""
    explained = explained_of("llama", **options)
    jobs = [(way, index) for way in (by_call, by_watch, by_relevance_of) for index in range(3)]
    alone = [way(explained, index) for way, index in jobs]

    def some(start: int) -> None:
        for (way, index), expected in [*zip(jobs, alone, strict=True)][start::2] * 4:
            assert torch.equal(way(explained, index), expected), (way.__name__, index)

    in_threads(*(lambda start=start % 2: some(start) for start in range(4)))  # type: ignore[misc]
    assert not explained._watches


def test_watch_sees_the_calls_of_its_own_thread_and_module() -> None:
    explained, other = explained_of("llama"), explained_of("llama", rules="cp_lrp")
    with lxt_fx.watch(explained, "model.layers.0") as inside:
        in_threads(lambda: by_call(explained, 0))
        with lxt_fx.watch(other, "model.layers.1"):
            by_call(other, 0)
        with pytest.raises(lxt_fx.InputError, match="has no value yet"):
            inside["model.layers.0"]
        by_call(explained, 1)
        in_threads(lambda: by_call(explained, 2))
    assert inside["model.layers.0"].value.shape == embeds(1).shape


def test_a_hook_that_is_registered_during_a_search_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    explained, x, fired = lxt_fx.transform(tiny.Mlp().eval(), (torch.randn(2, 6),)), torch.randn(2, 6), []
    first, second = explained.get_submodule("first"), explained.get_submodule("second")
    first.register_forward_hook(print).remove()  # the flag is up, and no hook is there
    named_modules = nn.Module.named_modules

    def registered_meanwhile(module: nn.Module, *given: Any, **named: Any) -> Iterator[Any]:
        for path, part in named_modules(module, *given, **named):
            yield path, part
            if part is second and not fired:
                fired.append("registered")
                first.register_forward_hook(lambda *given: fired.append("ran"))  # which was searched already

    monkeypatch.setattr(nn.Module, "named_modules", registered_meanwhile)
    explained(x)
    explained(x)
    assert fired == ["registered", "ran"]
    assert not hooked_now(tiny.Mlp(), HookFlag())


def test_models_are_captured_in_several_threads_while_others_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.export` puts placeholders into the model and tells all threads that they compile; checks go on."""
    monkeypatch.delenv("LXT_FX_CHECK")
    model, net, x = tiny.llama(), tiny.Mlp().double().eval(), torch.randn(2, 6).double()
    explained, fixed = lxt_fx.transform(model), lxt_fx.transform(net, (x,), dynamic=False)
    ids, wide = torch.tensor([[5, 9, 17]]), torch.randn(3, 6).double()
    expected, done = model(ids).logits, threading.Event()

    def capture(source: nn.Module, *example: Tensor) -> Any:
        return lxt_fx.transform(source, example)

    def call() -> int:
        count = 0
        while not done.is_set() or count < 5:
            count += 1
            logits = explained(inputs_embeds=lxt_fx.embed(explained, ids)).logits
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
            with pytest.raises(lxt_fx.CallError, match="was captured for"):
                fixed(wide)
        return count

    def captures() -> Any:
        try:
            return in_threads(lambda: capture(model), lambda: capture(net, x))
        finally:
            done.set()

    made, _ = in_threads(captures, call)
    torch.testing.assert_close(made[0](inputs_embeds=lxt_fx.embed(made[0], ids)).logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made[1](wide), net(wide))
    assert torch.is_grad_enabled() and not torch.compiler.is_compiling()


def test_code_compiles_in_the_thread_that_captures_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert one_capture.is_compiling()
    with one_capture.one_capture():
        assert one_capture.is_compiling() and in_threads(one_capture.is_compiling) == [False]


def test_graphs_that_threads_capture_again_are_all_there() -> None:
    net, x = Reading("index").eval(), torch.randn(3, 4)
    ways = [torch.tensor([index, 0, 0]) for index in range(3)]
    explained = lxt_fx.transform(net, (x, ways[0]), dynamic="recapture")
    expected = [net(x, way) for way in ways]

    def some(start: int) -> None:
        for index in [(start + count) % 3 for count in range(6)]:
            torch.testing.assert_close(explained(x, ways[index]), expected[index])

    in_threads(*(lambda start=start: some(start) for start in range(4)))  # type: ignore[misc]
    recaptures = explained._recaptures
    assert recaptures is not None and len(recaptures.graphs) == 2  # one for each way, by whichever thread came first


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_gets_the_same_numbers_and_can_capture() -> None:
    """Also while another thread of the parent captures, which the child does not have."""
    explained, net, x = explained_of("llama"), tiny.Mlp().eval(), torch.randn(2, 6)
    expected, held, leave = by_call(explained, 0), threading.Event(), threading.Event()

    def capturing() -> None:
        with one_capture.one_capture():
            held.set()
            leave.wait()

    thread = threading.Thread(target=capturing)
    thread.start()
    held.wait()
    got = in_child(lambda: (by_call(explained, 0), torch.allclose(lxt_fx.transform(net, (x,))(x), net(x))))
    leave.set()
    thread.join()
    assert torch.equal(torch.tensor(got[0]), expected) and got[1]


def in_child(job: Callable[[], Any]) -> Any:
    """What the job returns in a forked process; tensors as lists."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends a child that waits forever
        try:
            found: Any = [each.tolist() if isinstance(each, Tensor) else each for each in job()]
        except BaseException as error:
            found = [repr(error), False]
        os.write(write, pickle.dumps(found))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        found = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    return found
