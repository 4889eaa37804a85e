"""Real text out of the test data of gensim: English Wikipedia paragraphs, and capitals with their countries."""

from __future__ import annotations

import bz2
import html
import re
from collections.abc import Iterator

# Markup with nothing for a reader in it: comments, references, formulas, galleries.
NO_PROSE = re.compile(
    r"<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>|<(math|gallery|table|timeline|code)[^>]*>.*?</\1>", flags=re.DOTALL
)
TEMPLATE_OR_TABLE = re.compile(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}")
TEMPLATE_DEPTH = 6  # templates nest; each round removes the innermost
FILE_OR_LANGUAGE_LINK = re.compile(r"\[\[(?:File|Image|Category|[a-z\-]{2,12}):[^\[\]]*(?:\[\[[^\]]*\]\][^\[\]]*)*\]\]")
PAGE_LINK = re.compile(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]")  # keeps the words that the reader sees
WEB_LINK = re.compile(r"\[https?:\S+ ?([^\]]*)\]")
QUOTES_OR_TAG = re.compile(r"'{2,}|</?[a-z]+[^>]*>")
LEFT_OVER_MARKUP = re.compile(r"[{}|\[\]<>=]")


def paragraphs(dump: bytes, fewest_words: int = 60, most_words: int = 200) -> Iterator[tuple[str, str]]:
    """(title, paragraph) for each clean paragraph of a fitting length in the bz2-packed Wikipedia dump."""
    for page in re.findall(r"<page>.*?</page>", bz2.decompress(dump).decode(), flags=re.DOTALL):
        title = re.search(r"<title>(.*?)</title>", page)
        markup = re.search(r"<text[^>]*>(.*?)</text>", page, flags=re.DOTALL)
        if title is None or markup is None or "<redirect" in page:
            continue
        for line in prose(markup.group(1)).split("\n"):
            paragraph = tidy(line)
            if fewest_words <= len(paragraph.split()) <= most_words and is_clean(paragraph):
                yield html.unescape(title.group(1)), paragraph


def prose(markup: str) -> str:
    """Wikipedia markup without its tags, templates, tables and links. The dump escapes its text twice."""
    text = NO_PROSE.sub("", html.unescape(html.unescape(markup)))
    for _ in range(TEMPLATE_DEPTH):
        text = TEMPLATE_OR_TABLE.sub("", text)
    text = PAGE_LINK.sub(r"\1", FILE_OR_LANGUAGE_LINK.sub("", text))
    return QUOTES_OR_TAG.sub("", WEB_LINK.sub(r"\1", text))


def tidy(line: str) -> str:
    """Close the holes that removed templates leave."""
    return re.sub(r" +", " ", line).replace(" ,", ",").replace("()", "").strip()


def is_clean(paragraph: str) -> bool:
    """A paragraph starts with a letter, ends as a sentence does and has no markup left."""
    return paragraph[0].isalpha() and paragraph[-1] in '."' and not LEFT_OVER_MARKUP.search(paragraph)


def capitals(questions: str) -> list[tuple[str, str]]:
    """The 116 unique (country, capital) pairs of questions-words.txt, the 23 best known countries first.

    Its section `capital-common-countries` has the 23; its section `capital-world` has all.
    """
    pairs: dict[str, str] = {}
    for section in ("capital-common-countries", "capital-world"):
        for line in questions.split(f": {section}\n")[1].split("\n:")[0].splitlines():
            capital, country, other_capital, other_country = line.split()
            pairs |= {country: capital, other_country: other_capital}
    return list(pairs.items())
