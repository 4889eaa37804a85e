"""The result of `explain_corpus`, opened from its folder: an explanation for each key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lxt_fx.attribution.places import nearest
from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.base.frames import pandas_for
from lxt_fx.corpora.folder import DONE, ExplainedFolder
from lxt_fx.corpora.lines import explanation_in, units_in
from lxt_fx.inside.corpus.samples import needs_pyarrow
from lxt_fx.inside.latent_result import TopUnits
from lxt_fx.results.explanation import Explanation
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import RenderableType

NAME = "ExplainedCorpus"


class ExplainedCorpus(Listed, Mapping[str, Explanation]):
    """The explanations of a corpus by key, in the order of the corpus, read from the folder that `explain_corpus` wrote.

        found = lxt_fx.ExplainedCorpus("explained")
        found["texts.parquet:17"]                                # an Explanation, with all its views
        found.to_table(["key", "answer", "value", "tokens", "relevance"])

    A folder can be read while it is being written: it has the windows that are done. Raises InputError for a folder of
    something else, and without pyarrow.
    """

    def __init__(self, folder: str | Path) -> None:
        needs_pyarrow(NAME)
        self._store = ExplainedFolder(folder)
        self.header = self._store.header(NAME)
        self._parts = self._store.parts()
        self._places: dict[str, tuple[int, int]] | None = None
        self._last: tuple[int, Any] = (-1, None)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._store.path

    @property
    def complete(self) -> bool:
        """Whether all samples were read when the last run ended; False while one runs, or behind one that was killed."""
        return (self.folder / DONE).is_file()

    @property
    def last_run(self) -> dict[str, float]:
        """What the last complete run did: how many samples it `explained`, how many were `bad`, in how many `seconds`."""
        found = json.loads((self.folder / DONE).read_text(encoding="utf-8")) if self.complete else {}
        return dict(found.get("last_run", {}))

    def __len__(self) -> int:
        return len(self._found())

    def __iter__(self) -> Iterator[str]:
        return iter(self._found())

    def __getitem__(self, key: str) -> Explanation:
        return explanation_in(self._columns(key), self.header, f"{NAME}: {key}")

    def __contains__(self, key: object) -> bool:
        return key in self._found()

    def answer(self, key: str) -> str:
        """What the model says of a sample by itself, where the target asks. Raises UnknownNameError for a key that there is
        not."""
        return str(self._columns(key)["answer"])

    def units(self, key: str) -> TopUnits:
        """The strongest units of each place that was asked for, for one sample. Raises InputError if none was asked for,
        UnknownNameError for a key that there is not."""
        if not self.header["latent"]:
            raise InputError(f"{NAME}.units: no place was asked for; explain_corpus(..., latent=places) writes their units")
        return TopUnits(units_in(self._columns(key)))

    def bad(self) -> Iterator[dict[str, Any]]:
        """The samples that could not be explained: `key`, `number`, `reason`, `content` and `occurrence` of each."""
        return self._store.bad()

    def to_table(self, columns: Sequence[str] | None = None) -> Any:
        """All lines as a table of pyarrow, or some of their columns."""
        pyarrow = needs_pyarrow(NAME)
        tables = [self._store.read(part, columns, NAME) for part in self._parts]
        return pyarrow.concat_tables(tables) if tables else pyarrow.table({})

    def to_dataframe(self) -> DataFrame:
        """A pandas data frame with a line for each sample: `key`, `number`, `answer`, `explained`, `label`, `value`, `sum`.
        Raises InputError without pandas."""
        pandas = pandas_for(f"{NAME}.to_dataframe")
        names = ["key", "number", "answer", "explained", "label", "value", "sum"]
        return pandas.DataFrame(self.to_table(names).to_pydict(), columns=names)

    def __repr__(self) -> str:
        state = "" if self.complete else ", not complete"
        return f"ExplainedCorpus({self.header['model_class']}, {len(self)} samples{state}, {str(self.folder)!r})"

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("key", "answer", "value", "strongest token")
        table.columns[2].justify = "right"
        for key in list(self)[:SHOWN]:
            explanation = self[key]
            table.add_row(Text(key), Text(self.answer(key)), f"{explanation.value:.4g}", Text(explanation.top(1)[0].token))
        bad, state = sum(1 for _ in self.bad()), "" if self.complete else "; more are to come: call explain_corpus again"
        made = f"{len(self)} samples explained by {self.header['model_class']}, rules {self.header['table']}"
        said = f"{bad} could not be explained{state}" if bad or state else ""
        more = f"{str(self.folder)!r}; found[key] is one explanation, found.to_table() has all"
        return Group(Text(made, style="bold"), table, *([Text(said)] if said else []), Text(more))

    def _found(self) -> dict[str, tuple[int, int]]:
        """The part and the line in it of each key."""
        if self._places is None:
            self._places = {
                key: (at, line)
                for at, part in enumerate(self._parts)
                for line, key in enumerate(self._store.read(part, ("key",), NAME)["key"].to_pylist())
            }
        return self._places

    def _columns(self, key: str) -> dict[str, Any]:
        found = self._found()
        if key not in found:
            raise UnknownNameError(f"{NAME}: no sample {key!r} was explained; {nearest(key, list(found)[:SEARCHED])}")
        at, line = found[key]
        if self._last[0] != at:
            self._last = (at, self._store.read(self._parts[at], None, NAME))
        (columns,) = self._last[1].slice(line, 1).to_pylist()
        return dict(columns)


SHOWN, SEARCHED = 8, 10_000
"""How many samples are listed when it is printed, and among how many keys the nearest one is looked for."""
