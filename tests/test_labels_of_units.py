"""Labels of units: a TOML file that a person edits, read and written without losing what else is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

import lxt_fx
from lxt_fx import InputError

BY_HAND = """# what I found on Monday

["mlp.3.neurons"]
17 = "capital cities"   # all of Europe
203 = 'quotes "inside"'

["attention.0.heads"]  # heads
1 = "previous token"
"""


def test_a_file_written_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "labels.toml"
    assert len(lxt_fx.labels(path)) == 0 and not path.exists()
    path.write_text(BY_HAND)
    found = lxt_fx.labels(tmp_path)
    assert dict(found) == {
        ("mlp.3.neurons", 17): "capital cities",
        ("mlp.3.neurons", 203): 'quotes "inside"',
        ("attention.0.heads", 1): "previous token",
    }
    path.write_text(BY_HAND.replace("previous", "next"))
    assert found["attention.0.heads", 1] == "next token"


def test_setting_a_label_leaves_all_else_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "labels.toml"
    path.write_text(BY_HAND)
    found = lxt_fx.labels(path)
    found["mlp.3.neurons", 18] = 'towns "by the sea" \\ ü\n'
    found["mlp.3.neurons", 203] = "quotes"
    found["residual.2", 4] = "dates"
    line = '203 = "quotes"\n18 = "towns \\"by the sea\\" \\\\ ü\\n"\n'
    expected = BY_HAND.replace("203 = 'quotes \"inside\"'\n", line) + '\n["residual.2"]\n4 = "dates"\n'
    assert path.read_text() == expected
    assert found["mlp.3.neurons", 18] == 'towns "by the sea" \\ ü\n'
    del found["mlp.3.neurons", 17]
    assert ("mlp.3.neurons", 17) not in found and "Monday" in path.read_text()
    with pytest.raises(KeyError):
        del found["mlp.3.neurons", 17]
    new = lxt_fx.labels(tmp_path / "new.toml")
    new["mlp.0.neurons", 0] = "first"
    assert (tmp_path / "new.toml").read_text() == '["mlp.0.neurons"]\n0 = "first"\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[mlp.3.neurons]\n17 = 'towns'", "a place with dots in its name is written in quotes"),
        ("17 = 'towns'", "stands above the places"),
        ("['a']\nx = 'towns'", "a line is `17 = "),
        ("['a']\n1 = 2", "a line is `17 = "),
        ("['a'\n", "cannot be read"),
    ],
)
def test_a_file_of_something_else_is_refused_and_not_changed(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "labels.toml"
    path.write_text(text)
    found = lxt_fx.labels(path)
    with pytest.raises(InputError, match=why):
        found["a", 1] = "towns"
    assert path.read_text() == text


def test_what_is_no_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a label is a text"):
        lxt_fx.labels(tmp_path)["a", 1] = " "
    for key in ("mlp.3.neurons", ("mlp.3.neurons", "three"), ("mlp.3.neurons", -1), (3, 3)):
        with pytest.raises(InputError, match="a label is that of a place and a unit"):
            lxt_fx.labels(tmp_path)[key] = "a"  # type: ignore[index]


def test_a_label_inside_of_a_longer_text_is_not_taken_for_a_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.toml"
    text = '["a"]\n1 = """\n2 = not a line\n"""\n'
    path.write_text(text)
    found = lxt_fx.labels(path)
    with pytest.raises(InputError, match="edit it by hand"):
        found["a", 2] = "towns"
    assert path.read_text() == text
