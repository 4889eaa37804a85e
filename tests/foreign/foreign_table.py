"""The section of docs/supported_models.md about packages outside transformers, made of the results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from zoo_check import Result
from zoo_table import failures, summary, table


def section(results: Sequence[Result], versions: Mapping[str, str | None]) -> str:
    """Summary, what failed and why, and one line for each variant by package."""
    packages = defaultdict(list)
    for result in results:
        packages[result.family].append(result)
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    parts = [
        "## Outside transformers",
        f"Made by `python tests/foreign/run.py`: small random variants of {named}. The checks and the columns are those of "
        "the models above.",
        summary(results),
        failures(results, "### What does not pass, and why"),
    ]
    parts += [f"### {package}\n\n{table(members)}" for package, members in sorted(packages.items())]
    return "\n\n".join(parts)
