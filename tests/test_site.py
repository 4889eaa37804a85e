"""The documentation site is built without a warning and asks nothing of any network when it is read."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

import lxt_fx

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group("site")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `python3 dev.py site` does: a warning of Sphinx (a link that leads nowhere) is a failure."""
    target = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, str(ROOT / "docs/site/build.py"), str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


class Elsewhere(HTMLParser):
    """Collects addresses of other machines that a browser asks by itself: in any attribute but the target of a link."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            followed_by_hand = tag == "a" and name == "href"
            a_name_only = name.startswith(("xmlns", "content"))
            if not followed_by_hand and not a_name_only and re.search(r"(^|[\s(,'\"])(https?:)?//\w", value or ""):
                self.found.append(f"<{tag} {name}={value}>")


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        parser = Elsewhere()
        parser.feed(page.read_text())
        assert not parser.found, page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(\s*|@import\s+)['\"]?(?:https?:)?//[^)\s]*", sheet.read_text()), sheet


def test_elsewhere_sees_what_a_browser_would_ask() -> None:
    parser = Elsewhere()
    parser.feed('<a href="https://a.org">x</a><img src="//b.org/x.png"><link href="https://c.org/f.css">')
    parser.feed('<p style="background:url(http://d.org)">')
    assert [found.split()[0] for found in parser.found] == ["<img", "<link", "<p"]


def test_pages_name_no_registry_and_nothing_of_the_machine_that_built_them(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not re.findall(r"pypi\.org|pythonhosted|npmjs|/work/|/root/|/tmp/pytest", page.read_text()), page


def test_the_reference_has_every_public_name(site: Path) -> None:
    text = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    ids = set(re.findall(r'id="(?:module-)?lxt_fx\.(\w+)"', text))
    assert not set(lxt_fx.__all__) - ids
    assert 'id="lxt_fx.Explanation.merge"' in text and 'id="lxt_fx.functional.linear"' in text


def test_every_page_of_docs_and_every_tutorial_is_in_the_site(site: Path) -> None:
    for source in (*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/tutorials").glob("*.ipynb")):
        assert (site / source.relative_to(ROOT / "docs")).with_suffix(".html").is_file(), source
    assert (site / "searchindex.js").is_file()
    assert 'href="door.html"' in (site / "index.html").read_text() and "lxt-fx-data" in (site / "door.html").read_text()


def test_the_page_of_formulas_has_every_rule_of_every_table(site: Path) -> None:
    text = (site / "papers.html").read_text()
    for table in lxt_fx.TABLES.values():
        assert all(f"<td><p>{rule.name}</p></td>" in text for rule in table.rules), table.name


def test_what_is_cited_has_the_version_and_the_licence_of_the_package() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {lxt_fx.__version__}\n" in citation
    assert f"\nlicense: {tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['license']}\n" in citation


def test_the_page_on_installing_names_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (ROOT / "docs/install.md").read_text()
    assert not [extra for extra in extras if f"`{extra}`" not in page]
