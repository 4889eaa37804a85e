"""Builds the documentation site into site/: `python3 dev.py site`.

The pages are those of docs/, which stay readable where they lie. They are copied into a folder beside the site, with the
API reference and the navigation, and Sphinx makes HTML of them; its warnings (a link that leads nowhere, a page that no
part of the navigation has) are errors. Nothing is asked of any network, neither here nor when the site is read.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import main as sphinx

import api
import formulas
import lxt_fx
from navigation import FROM_ABOVE, PARTS

HERE = Path(__file__).resolve().parent
DOCS, ROOT = HERE.parent, HERE.parents[1]
sys.path.append(str(ROOT / "benchmarks" / "referee"))
import referee  # noqa: E402

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
PLACE_OF_A_LINK = "<!-- the site has a link here: (.*?) -->"
FENCED = re.compile(r"^(```.*?^```[^\n]*$)", re.S | re.M)


def main(target: Path) -> int:
    """Stage the pages, and build the site in the folder `target`; what was there before goes. Returns Sphinx's status."""
    staged = target.with_name(f".{target.name}_pages")
    for folder in (staged, target):
        shutil.rmtree(folder, ignore_errors=True)
    stage(staged)
    made = staged / "_build" / "html"  # and not the target, since myst-nb writes beside what it makes
    status = sphinx(["-b", "html", "-W", "--keep-going", "-q", "-d", str(made.with_name("trees")), str(staged), str(made)])
    shutil.move(made, target)
    shutil.rmtree(staged)
    return int(status)


def stage(folder: Path) -> None:
    """Everything that Sphinx reads, in one folder."""
    folder.mkdir(parents=True)
    for file in DOCS.iterdir():
        if file.is_file() and file.suffix != ".md":
            shutil.copy(file, folder)
    for source in (*DOCS.glob("*.md"), *(ROOT / above for above in FROM_ABOVE.values())):
        (folder / staged_name(source)).write_text(relinked(source))
    (folder / "tutorials").mkdir()
    for notebook in (DOCS / "tutorials").glob("*.ipynb"):
        shutil.copy(notebook, folder / "tutorials")
    (folder / "api").mkdir()
    for name, page in api.pages().items():
        (folder / "api" / f"{name}.md").write_text(page)
    (folder / "papers.md").write_text(formulas.page())
    (folder / "_extra").mkdir()
    lxt_fx.explore(lxt_fx.Explanation.from_json(DOCS / "door.json"), path=folder / "_extra" / "door.html")
    home = folder / "index.md"
    home.write_text(re.sub(PLACE_OF_A_LINK, r'<p><a href="door.html">Open \1</a></p>', home.read_text()))
    benchmark(folder)
    with home.open("a") as index:
        index.write(navigation(folder))
    shutil.copy(HERE / "conf.py", folder)
    (folder / "_static").mkdir()
    shutil.copy(HERE / "site.css", folder / "_static")


def benchmark(folder: Path) -> None:
    """A page of its own for the results of each grid, with a plot for each table, and links to them."""
    links = []
    for grid, files in referee.by_grid().items():
        page = f"benchmark_{grid}.html"
        referee.read(files, "attnlrp").to_html(folder / "_extra" / page)
        links.append(f'<p><a href="{page}">{referee.GRIDS[grid][1]}, a plot for each table</a></p>')
    page = folder / referee.MAIN
    page.write_text(re.sub(PLACE_OF_A_LINK, "\n".join(links), page.read_text()))


def navigation(folder: Path) -> str:
    """The hidden tables of contents that make the sidebar, with the pages that are there."""
    parts = []
    for part, names in PARTS.items():
        there = [name for name in names if any((folder / f"{name}{ending}").exists() for ending in (".md", ".ipynb"))]
        parts.append("\n".join([f"\n```{{toctree}}\n:hidden:\n:caption: {part}\n", *there, "```\n"]))
    return "".join(parts)


def staged_name(source: Path) -> str:
    """The name of a page in the site."""
    above = {file: f"{name}.md" for name, file in FROM_ABOVE.items()}
    return above.get(source.relative_to(ROOT).as_posix(), source.name)


def relinked(source: Path) -> str:
    """A page as text. Its links to pages lead to the site's; those to other files of the repository, which the site has
    not, become the path."""

    def moved(match: re.Match[str]) -> str:
        picture, words, link, anchor = match[1], match[2], match[3], match[4] or ""
        if "://" in link:
            return match[0]
        file = (source.parent / link).resolve()
        if file.suffix == ".md" and (file.parent == DOCS or file.name in FROM_ABOVE.values()):
            return f"[{words}]({staged_name(file)}{anchor})"
        if file.is_relative_to(DOCS) and file.is_file():
            return f"{picture}[{words}]({file.relative_to(DOCS).as_posix()}{anchor})"
        path = file.relative_to(ROOT).as_posix()
        return f"`{path}`" if words.strip("`") in (path, file.name) else f"{words} (`{path}`)"

    pieces = FENCED.split(source.read_text())
    return "".join(piece if piece.startswith("```") else LINK.sub(moved, piece) for piece in pieces)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
