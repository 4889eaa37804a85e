"""Signs of life: what a call that lasts shows, when, and where it shows nothing."""

from __future__ import annotations

import ast
import functools
import inspect
import io
import os
import re
import signal
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rich.console import Console
from rich.live import Live

import lxt_fx
from lxt_fx.base import progress
from lxt_fx.base.progress import DELAY, Display, hidden, lasting, stage, steps, told
from lxt_fx.base.progress_line import SPINNER, Line, Notebook, Step
from lxt_fx.base.warn_user import warn_user
from lxt_fx.compiler.kept_captures import forget_model
from lxt_fx.compiler.timed import WORDS

ERASE = "\r\x1b[2K"


class Stream(io.StringIO):
    """Standard error of a terminal, or of a pipe."""

    def __init__(self, terminal: bool = True, encoding: str = "utf-8") -> None:
        super().__init__()
        self.terminal, self._encoding = terminal, encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self.terminal

    @property
    def screen(self) -> str:
        """What a person sees in the last line."""
        return shown(self).split(ERASE)[-1]


def shown(stream: Stream) -> str:
    """All that was written, without colours, and with * for each picture of the spinner."""
    return turning(re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue()))


def turning(text: str) -> str:
    return re.sub(f"[{SPINNER}]", "*", text)


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def display(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Display:
    """The display of the process, by this clock and drawn by hand."""
    made = Display(clock, alone=False)
    monkeypatch.setattr(progress, "_DISPLAY", made)
    return made


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Stream:
    for name in ("LXT_FX_PROGRESS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Stream()  # pytest puts its own in the place of sys.stderr when a test begins
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=stream, stdout=stream, modules=sys.modules))
    return stream


@pytest.fixture
def later(display: Display, clock: Clock) -> Callable[[float], float | None]:
    """Lets seconds pass and draws what is due."""

    def later(seconds: float) -> float | None:
        clock.now += seconds
        return display.tick()

    return later


@lasting
def explaining(do: Callable[[], Any], progress: bool | None = None) -> Any:
    return do()


Later = Callable[[float], float | None]


def test_a_line_appears_after_two_seconds_and_is_gone_at_the_end(terminal: Stream, later: Later) -> None:
    def do() -> None:
        with stage("capturing"):
            assert later(1.9) == pytest.approx(DELAY - 1.9)
            assert terminal.getvalue() == ""
            later(0.2)
            assert terminal.screen == "* explaining: capturing 0:02"
        later(60)
        assert terminal.screen == "* explaining 1:02"

    explaining(do)
    assert terminal.getvalue().endswith(ERASE)
    written = terminal.getvalue()
    assert later(9) is None and terminal.getvalue() == written


def test_nothing_is_written_by_a_call_that_ends_within_two_seconds(terminal: Stream, later: Later) -> None:
    for _ in range(5):
        explaining(lambda: later(1.9))
    assert terminal.getvalue() == ""


def test_counted_steps_have_a_bar_and_the_time_that_is_left(terminal: Stream, later: Later) -> None:
    seen = []

    def do() -> None:
        for _ in steps("relevance of targets", range(0, 100, 8), 100, 8):
            later(4)
            seen.append(terminal.screen)

    explaining(do)
    assert seen[0] == "* explaining: relevance of targets " + "━" * 20 + "   0/100 0:04, -:-- left"
    assert seen[1] == "* explaining: relevance of targets " + "━" * 20 + "   8/100 0:08, 1:32 left"
    assert seen[-1] == "* explaining: relevance of targets " + "━" * 20 + "  96/100 0:52, 0:02 left"
    assert "\x1b[38;5;237m" + "━" * 18 in terminal.getvalue(), "the part of the bar that is not done is grey"


def test_one_step_has_no_bar(terminal: Stream, later: Later) -> None:
    explaining(lambda: [later(3) for _ in steps("relevance of targets", range(1), 1)])
    assert ERASE + "* explaining: relevance of targets 0:03" + ERASE in shown(terminal)


def test_calls_inside_a_call_share_its_line(terminal: Stream, later: Later) -> None:
    def inner() -> None:
        with stage("choosing rules"):
            for _ in steps("examples", range(3), 3):
                later(3)
                assert terminal.screen.startswith("* explaining: scoring tables, examples ━")
                assert " 1/5 " in terminal.screen

    def do() -> None:
        counted = steps("scoring tables", range(5), 5)
        next(counted), next(counted)
        explaining(inner)
        later(1)
        assert terminal.screen.startswith("* explaining: scoring tables ━")

    explaining(do)
    assert terminal.getvalue().endswith(ERASE)


def test_a_step_that_is_closed_late_ends_no_other(terminal: Stream, later: Later) -> None:
    """An error leaves generators open for as long as its traceback lives."""

    def do() -> None:
        with stage("first"):
            abandoned = steps("targets", range(4), 4)
            next(abandoned)
        with stage("second"):
            later(3)
            assert terminal.screen == "* explaining: second 0:03"
            abandoned.close()  # type: ignore[attr-defined]
            later(1)
            assert terminal.screen == "* explaining: second 0:04"

    explaining(do)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_terminal_clean(
    terminal: Stream, display: Display, later: Later, error: type[BaseException]
) -> None:
    def do() -> None:
        for _ in steps("targets", range(4), 4):
            with stage("capturing"):
                later(3)
                assert terminal.screen.startswith("* explaining: targets, capturing ━")
                raise error("stop")

    with pytest.raises(error, match="stop"):
        explaining(do)
    assert terminal.getvalue().endswith(ERASE) and "\x1b[?25l" not in terminal.getvalue()
    assert not display.calls and progress._CALL.get() is None
    explaining(lambda: later(3))
    assert terminal.getvalue().count("explaining 0:03") == 0 and not display.calls


def quiet(later: Later, how: Callable[[Callable[[], Any]], Any] = explaining) -> None:
    def do() -> None:
        with stage("capturing"):
            for _ in steps("targets", range(3), 3):
                later(3)

    how(do)


def test_nothing_in_a_pipe(display: Display, later: Later, monkeypatch: pytest.MonkeyPatch, terminal: Stream) -> None:
    for stream in (Stream(terminal=False), None, object()):
        monkeypatch.setattr(progress.sys, "stderr", stream)
        for wanted in (None, True):
            quiet(later, functools.partial(explaining, progress=wanted))
        assert not isinstance(stream, Stream) or stream.getvalue() == ""
    closed = Stream()
    closed.close()
    monkeypatch.setattr(progress.sys, "stderr", closed)
    quiet(later)


def test_nothing_where_the_user_says_so(terminal: Stream, later: Later, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(later, lambda do: explaining(do, progress=False))
    with lxt_fx.progress(False):
        quiet(later)
        quiet(later, lambda do: do())
        quiet(later, lambda do: explaining(do, progress=None))
    monkeypatch.setenv("TERM", "dumb")
    quiet(later)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("LXT_FX_PROGRESS", "0")
    quiet(later)
    monkeypatch.setattr(progress.multiprocessing, "parent_process", lambda: object())
    monkeypatch.delenv("LXT_FX_PROGRESS")
    quiet(later)
    assert terminal.getvalue() == ""
    quiet(later, lambda do: explaining(do, progress=True))
    assert "explaining: targets, capturing" not in terminal.getvalue() and "explaining: targets ━" in shown(terminal)


def test_inside_of_a_call_that_shows_none_nothing_is_shown(terminal: Stream, later: Later) -> None:
    explaining(lambda: quiet(later), progress=False)
    assert terminal.getvalue() == ""
    explaining(lambda: quiet(later, lambda do: explaining(do, progress=False)))
    assert "targets" not in terminal.getvalue() and "explaining" in terminal.getvalue()


def test_progress_is_true_false_or_none() -> None:
    with pytest.raises(lxt_fx.InputError, match="progress must be True, False or None, got 'no'"):
        explaining(lambda: None, progress="no")  # type: ignore[arg-type]


def test_calls_of_several_threads_have_one_line(terminal: Stream, display: Display, later: Later) -> None:
    go = [threading.Event() for _ in range(2)]
    begun = [threading.Event() for _ in range(2)]

    def wait(index: int) -> None:
        with stage(f"work {index}"):
            begun[index].set()
            go[index].wait(10)

    threads = [threading.Thread(target=explaining, args=(functools.partial(wait, index),)) for index in range(2)]
    for thread, event in zip(threads, begun, strict=True):
        thread.start()
        event.wait(10)
    later(3)
    assert terminal.screen == "* explaining: work 0 (and 1 more call) 0:03"
    go[0].set()
    threads[0].join()
    assert terminal.screen == ""
    later(1)
    assert terminal.screen == "* explaining: work 1 0:04"
    go[1].set()
    threads[1].join()
    assert terminal.screen == "" and not display.calls


def test_many_threads_at_once_lose_no_call(terminal: Stream, display: Display, later: Later) -> None:
    def work() -> None:
        for _ in range(50):
            quiet(lambda seconds: display.tick())

    threads = [threading.Thread(target=work) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not display.calls and terminal.getvalue() == ""


def test_a_display_of_the_user_stays_alone(terminal: Stream, later: Later, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Stream()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "sys", sys)

    def do() -> None:
        with Live("mine", console=Console(file=screen, force_terminal=True), auto_refresh=False):
            later(3)
            assert terminal.getvalue() == ""
        later(1)
        assert terminal.screen == "* explaining 0:04"
        with Live("mine", console=Console(file=screen, force_terminal=True), auto_refresh=False):
            later(1)
            assert terminal.screen == ""

    explaining(do)
    live = Live("mine", console=Console(file=screen, force_terminal=True), auto_refresh=False)
    live.start()

    def outlives() -> None:
        later(3)
        assert terminal.screen == ""
        live.stop()
        later(1)
        assert terminal.screen == "* explaining 0:04"

    explaining(outlives)


def test_a_warning_stands_in_a_line_of_its_own(terminal: Stream, later: Later) -> None:
    def do() -> None:
        later(3)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *rest: print(message, file=terminal)
            warn_user("captured anew")
        assert terminal.getvalue().endswith(f"{ERASE}captured anew\n")
        later(1)
        assert terminal.screen == "* explaining 0:04"
        with hidden():
            assert terminal.screen == ""

    explaining(do)


def test_a_terminal_that_fails_stops_no_call(terminal: Stream, later: Later) -> None:
    def fails(text: str) -> int:
        raise OSError("gone")

    terminal.write = fails  # type: ignore[method-assign]
    explaining(lambda: later(3))
    assert terminal.getvalue() == ""


def test_a_terminal_without_unicode_gets_plain_characters(
    monkeypatch: pytest.MonkeyPatch, terminal: Stream, later: Later
) -> None:
    stream = Stream(encoding="ascii")
    monkeypatch.setattr(progress.sys, "stderr", stream)
    quiet(later)
    assert "explaining: targets ##########--" in shown(stream) and stream.getvalue().isascii()


@pytest.mark.parametrize("width", [10, 30, 60, 79, 200])
def test_a_line_fits_the_terminal(width: int) -> None:
    counted, inner = Step("relevance of targets", 1000, 0.0, 371), Step("capturing the model as a graph", None, 0.0)
    texts = [
        Line("answer_relevance", chosen, others, 4000.0, 5.0).text(width, plain)
        for chosen in ((), (counted,), (inner,), (counted, inner))
        for others in (0, 12)
        for plain in (False, True)
    ]
    assert all(len(text.plain) <= max(width, 40) for text in texts)
    if width >= 60:
        assert all(len(text.plain) <= width for text in texts)
        assert all("1:06:40" in text.plain for text in texts)


def test_a_notebook_shows_one_output_a_cell(monkeypatch: pytest.MonkeyPatch, terminal: Stream, later: Later) -> None:
    outputs: list[list[Any]] = []

    class Output:
        def update(self, shown: Any, raw: bool = False) -> None:
            outputs[-1].append(shown if raw else turning(shown.plain))

    def show(text: Any, display_id: bool) -> Output:
        outputs.append([turning(text.plain)])
        return Output()

    shell = types.SimpleNamespace(kernel=object(), execution_count=1)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=show))
    monkeypatch.setattr(Notebook, "_last", (None, None))
    terminal.terminal = False
    empty = {"text/plain": "", "text/html": ""}
    explaining(lambda: (later(1), later(2), later(1)))
    explaining(lambda: later(3))
    assert outputs == [["* explaining 0:03", "* explaining 0:04", empty, "* explaining 0:03", empty]]
    shell.execution_count = 2
    explaining(lambda: later(3))
    assert outputs[1:] == [["* explaining 0:03", empty]]
    explaining(lambda: later(3), progress=False)
    shell.kernel = None  # IPython in a terminal, here with standard error in a pipe
    explaining(lambda: later(3))
    assert outputs[1:] == [["* explaining 0:03", empty]]


def test_a_thread_draws_while_a_step_lasts(terminal: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.05)
    monkeypatch.setattr(progress, "EVERY", 0.01)
    made = Display()
    monkeypatch.setattr(progress, "_DISPLAY", made)

    def until(done: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not done() and time.monotonic() < end:
            time.sleep(0.005)
        assert done()

    explaining(lambda: until(lambda: "explaining" in terminal.screen))
    assert terminal.getvalue().endswith(ERASE)
    until(lambda: made.thread is None)
    explaining(lambda: until(lambda: "explaining" in terminal.screen))
    made.stop()


def test_a_forked_process_does_not_wait_for_a_thread_that_is_not_there(terminal: Stream) -> None:
    held, go = threading.Event(), threading.Event()

    def draws() -> None:
        with hidden():
            held.set()
            go.wait(30)

    thread = threading.Thread(target=draws)
    thread.start()
    held.wait(30)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
        signal.alarm(10)
        explaining(lambda: None)
        os._exit(0)
    go.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# What each function says


@pytest.fixture
def said(terminal: Stream, display: Display, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int | None]]]:
    """The steps that calls show: their words, and of how many."""
    found: list[tuple[str, int | None]] = []

    def step(words: str, total: int | None, since: float) -> Step:
        found.append((words, total))
        return Step(words, total, since)

    monkeypatch.setattr(progress, "Step", step)
    yield found
    assert not display.calls


def test_transform_says_its_stages(said: list[tuple[str, int | None]]) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.SiLU(), torch.nn.Linear(4, 2)).eval()
    x = torch.randn(2, 4)
    lxt_fx.transform(net, (x,), progress=False)
    assert not said
    forget_model(net)
    explained = lxt_fx.transform(net, (x,))
    shown = {words for words, _ in said}
    assert shown == {words for name, words in WORDS.items() if name not in ("positions", "checkpoint", "placement")}
    assert explained.record.seconds.keys() <= WORDS.keys()


def test_every_stage_has_words() -> None:
    folder = Path(inspect.getfile(lxt_fx)).parent / "compiler"
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.glob("*.py")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    timed = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "timed"]
    assert {ast.literal_eval(call.args[1]) for call in timed} == set(WORDS)


def test_functions_of_many_targets_examples_and_tables_count_them(said: list[tuple[str, int | None]]) -> None:
    explained, pixels = lxt_fx.transform(tiny.vit(), progress=False), torch.randn(3, 1, 8, 8)
    lxt_fx.relevance_of(explained, {"pixel_values": pixels}, [0, 1, 2, 3], chunk=2)
    assert said == [("running the forward", None), ("relevance of targets", 4)]
    said.clear()
    lxt_fx.audit(explained, {"pixel_values": pixels}, 1)
    assert said == [("running the forward, node by node", None), ("auditing examples", 3), ("closing the books", None)]
    said.clear()
    removal = lxt_fx.Removal(steps=2)
    lxt_fx.perturbation_curves(explained, {"pixel_values": pixels}, pixels, 1, removal=removal)
    ((words, count),) = said
    assert words == "answers without parts of the input" and count is not None and 3 < count <= 18
    said.clear()
    lxt_fx.tune(explained, pixels, 1, grid={"linear": [0, 1]}, removal=removal)
    assert said[0] == ("scoring tables", 2) and ("answers without parts of the input", count) in said
    said.clear()
    lxt_fx.explain_image(explained, pixels)
    assert said == [("running the forward", None), ("relevance of targets", 1), ("explanations", 3)]


LASTING = {
    "activation_patching", "answer_relevance", "audit", "bench", "circuit_faithfulness", "circuit_scores", "conditional",
    "corpus", "explain", "explain_corpus", "explain_image", "latent", "lens", "maximise", "perturbation_curves", "plan",
    "position_relevance", "qk_attribution", "relevance_of", "splice", "transform", "tune",
}  # fmt: skip


def test_steps_are_told_instead_of_drawn_and_what_is_raised_ends_the_call(terminal: Stream, later: Later) -> None:
    heard: list[list[tuple[str, int]]] = []

    def tell(steps: tuple[Step, ...]) -> None:
        heard.append([(step.words, step.done) for step in steps])
        if len(heard) == 4:
            raise KeyError("enough")

    @lasting
    def outer(progress: bool | None = None) -> None:
        with stage("first"):
            later(DELAY + 1)
        for _ in steps("counted", range(3), 3):
            pass

    with told(tell), pytest.raises(KeyError):
        outer()
    assert heard == [[("first", 0)], [("counted", 0)], [("counted", 1)], [("counted", 2)]]
    assert not terminal.getvalue()
    outer()
    assert len(heard) == 4 and "first" in shown(terminal), "the block is over"


def test_every_function_that_lasts_has_the_argument() -> None:
    functions = {name: each for name in lxt_fx.__all__ if inspect.isfunction(each := getattr(lxt_fx, name))}
    asking = {name for name, each in functions.items() if "progress" in inspect.signature(each).parameters}
    decorated = {name for name, each in functions.items() if getattr(each, "__code__", None) is explaining.__code__}
    assert asking == decorated == LASTING
    for name in LASTING:
        parameter = inspect.signature(functions[name]).parameters["progress"]
        assert parameter.kind is parameter.KEYWORD_ONLY and parameter.default is None
