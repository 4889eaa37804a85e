"""`lxt-fx audit`: where all relevance went, and whether the sums agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lxt_fx.base.errors import LedgerError
from lxt_fx.shell import options
from lxt_fx.shell.explain_command import read_paths
from lxt_fx.shell.options import DtypeName
from lxt_fx.shell.outputs import Outputs, checked
from lxt_fx.shell.texts import Given, Texts, named, texts_of

if TYPE_CHECKING:
    from lxt_fx.attribution.target import Target
    from lxt_fx.ledger.ledger import Ledger


def audit_command(
    model: options.ModelName,
    text: options.Text = None,
    file: options.File = None,
    chat: options.ChatTurn = False,
    from_json: options.FromJson = False,
    target: options.TargetName = None,
    contrast: options.Contrast = None,
    position: options.Position = None,
    rules: options.RulesName = "attnlrp",
    html: options.Html = None,
    png: options.Png = None,
    json: options.Json = None,
    show: options.Show = None,
    force: options.Force = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = DtypeName.float32,
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Show where all relevance went: what tokens, biases and positions received, what each layer absorbed and why. The sums
    must agree: if a rule absorbs relevance that it claims to conserve, the command names the operation and fails (exit code
    5). The picture is a waterfall from the answer to the tokens.

    **Examples**

    - `lxt-fx audit ./my-model "The capital of France is"`
    - `lxt-fx audit ./my-model "The capital of France is" --rules cp_lrp --png waterfall.png`
    - `lxt-fx audit ./my-model --file prompts.txt --quiet > ledgers.txt`
    """
    outputs = checked(
        {"html": html, "png": png, "json": json}, force=force, quiet=quiet, show=show, reads=read_paths(file)
    )
    texts = texts_of(text, file, chat, from_json)
    chosen, at = options.target_of(target, contrast, position), options.ModelAt(model, device, dtype)
    _audited(at, texts, chosen, rules, outputs)


def _audited(at: options.ModelAt, texts: Texts, target: Target, rules: str, outputs: Outputs) -> None:
    from lxt_fx.compiler.options import table_named
    from lxt_fx.compiler.transform import transform
    from lxt_fx.ledger.run_audit import audit
    from lxt_fx.shell.deliver import refuse_pictures_of_many
    from lxt_fx.shell.loading import inputs_of, text_model

    table_named(rules, "--rules")
    refuse_pictures_of_many(outputs, texts.many)
    model, tokenizer = text_model(at)
    explained = transform(model, rules=rules)

    def each() -> Iterator[tuple[Given, Ledger]]:
        for given in texts:
            with named(given):
                inputs = inputs_of(model, tokenizer, given.value, "audit")
                ledger = audit(explained, inputs, target, tokenizer=tokenizer)
            yield given, ledger

    failed = _many(each(), outputs) if texts.many else _one(each(), outputs)
    if failed is not None:
        raise failed


def _one(found: Iterator[tuple[Given, Ledger]], outputs: Outputs) -> LedgerError | None:
    ((given, ledger),) = found
    outputs.show(ledger)
    outputs.write("html", ledger.to_html)
    outputs.write("png", ledger.to_png)
    outputs.one_json(ledger.to_dict(), ledger.to_json)
    return _fault(given, ledger)


def _many(found: Iterator[tuple[Given, Ledger]], outputs: Outputs) -> LedgerError | None:
    """Audits all of them; the first that fails is raised behind the last."""
    from lxt_fx.explorer.explore import explore
    from lxt_fx.shell.deliver import deliver_many

    failed: list[LedgerError] = []

    def each() -> Iterator[tuple[str, Ledger]]:
        for given, ledger in found:
            yield given.where, ledger
            fault = _fault(given, ledger)
            failed.extend([] if fault is None else [fault])

    page = deliver_many(each(), outputs, lambda ledger: [ledger], lambda ledger: ledger.to_dict())
    outputs.write("html", lambda path: explore(*page, path=path))
    return failed[0] if failed else None


def _fault(given: Given, ledger: Ledger) -> LedgerError | None:
    try:
        with named(given):
            ledger.check()
    except LedgerError as error:
        return error
    return None
