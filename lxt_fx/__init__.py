"""lxt_fx: the compiler that makes any PyTorch transformer explain itself.

`transform(model)` gives a torch.fx GraphModule that computes what the model computes and whose `backward()` passes
relevance (AttnLRP, Achtibat et al. 2024). `explain` is the short way from a text to a heatmap, `show` prints the graph.

Everything but the errors and the `lxt_fx::` ops is imported when it is first named, so `import lxt_fx` costs little more
than torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from lxt_fx.base.errors import (
    CallError,
    CaptureError,
    ForwardMismatchError,
    GradientMismatchError,
    InputError,
    LedgerError,
    LxtFxError,
    ModelChangedError,
    NonFiniteError,
    NoRuleError,
    TracedBranchError,
    UnknownNameError,
    UnsupportedVersionError,
)
from lxt_fx.version import __version__ as __version__


def _register_ops() -> None:
    """Registers the ops that a saved graph may call. In the command `lxt-fx` what needs them does it, since its help does
    not wait for torch."""
    command = next(iter(sys.argv), "").removesuffix(".exe")
    if not command.endswith(("/lxt-fx", "\\lxt-fx")):
        importlib.import_module("lxt_fx.ops")


_register_ops()

if TYPE_CHECKING:
    from lxt_fx import distributed, edits, flow, functional, nn
    from lxt_fx.attribution.embeddings import embed
    from lxt_fx.attribution.many_targets import relevance_of
    from lxt_fx.attribution.places import InsidePlace, Places, places
    from lxt_fx.attribution.target import Target
    from lxt_fx.attribution.watch import watch
    from lxt_fx.base.progress import progress
    from lxt_fx.compiler.explained import Explained
    from lxt_fx.compiler.place import place
    from lxt_fx.compiler.record import Record
    from lxt_fx.compiler.saved_module import load, save
    from lxt_fx.compiler.transform import transform
    from lxt_fx.corpora.explain_corpus import explain_corpus
    from lxt_fx.corpora.explainer import CorpusExplainer
    from lxt_fx.corpora.result import ExplainedCorpus
    from lxt_fx.explorer.explore import explore
    from lxt_fx.explorer.server.serve import serve
    from lxt_fx.faithfulness.removal_curves import PerturbationCurves, perturbation_curves
    from lxt_fx.faithfulness.removed_units import Removal
    from lxt_fx.faithfulness.search import tune
    from lxt_fx.faithfulness.tuned_table import TunedTable
    from lxt_fx.inside.circuits.activation_patching import Patching, activation_patching
    from lxt_fx.inside.circuits.circuit_faithfulness import CircuitFaithfulness, circuit_faithfulness
    from lxt_fx.inside.circuits.circuit_scores import circuit_scores
    from lxt_fx.inside.circuits.mib import read_mib_circuit
    from lxt_fx.inside.circuits.qk_attribution import qk_attribution
    from lxt_fx.inside.circuits.qk_result import QKAttribution
    from lxt_fx.inside.circuits.scores_result import CircuitScores
    from lxt_fx.inside.conditional import conditional
    from lxt_fx.inside.corpus.labels import labels
    from lxt_fx.inside.corpus.read_corpus import corpus
    from lxt_fx.inside.corpus.result import Corpus
    from lxt_fx.inside.dictionaries.dictionary import Dictionary
    from lxt_fx.inside.dictionaries.splice import splice
    from lxt_fx.inside.latent import latent
    from lxt_fx.inside.latent_result import Latent, TopUnits
    from lxt_fx.inside.lens.lens import lens
    from lxt_fx.inside.lens.lens_result import Lens
    from lxt_fx.inside.lens.reading import LensReading
    from lxt_fx.inside.maximise import Maximised, Regularisers, maximise
    from lxt_fx.inside.position_relevance import PositionRelevance, position_relevance
    from lxt_fx.inside.steering.steer import steer
    from lxt_fx.inside.units import Only
    from lxt_fx.ledger.arrivals import Landing
    from lxt_fx.ledger.causes import Cause
    from lxt_fx.ledger.ledger import Ledger
    from lxt_fx.ledger.run_audit import audit
    from lxt_fx.packed.known import register_packed
    from lxt_fx.planning.device_plan import DevicePlan
    from lxt_fx.planning.plan import plan
    from lxt_fx.referee.bench import bench, read_bench
    from lxt_fx.referee.results import BenchResults
    from lxt_fx.report.certificates import Certificate, certificate
    from lxt_fx.report.printed_graph import diff, show
    from lxt_fx.results.account import Account
    from lxt_fx.results.comparison import Comparison, compare
    from lxt_fx.results.explanation import Explanation
    from lxt_fx.results.explanations import Explanations
    from lxt_fx.results.kinds import AnswerRelevance, ImageExplanation
    from lxt_fx.results.recursive_answer import RecursiveAnswer
    from lxt_fx.rule_table.rule import Conserves, Rule
    from lxt_fx.rule_table.table import RuleTable
    from lxt_fx.rule_table.tables import TABLES
    from lxt_fx.tasks.answers import answer_relevance
    from lxt_fx.tasks.explain import explain, explain_image

__all__ = [
    "distributed",
    "edits",
    "flow",
    "functional",
    "Account",
    "AnswerRelevance",
    "activation_patching",
    "answer_relevance",
    "audit",
    "bench",
    "BenchResults",
    "NonFiniteError",
    "LedgerError",
    "Ledger",
    "Landing",
    "Cause",
    "TABLES",
    "CallError",
    "CaptureError",
    "Certificate",
    "CircuitFaithfulness",
    "CircuitScores",
    "Comparison",
    "Corpus",
    "CorpusExplainer",
    "Explained",
    "ExplainedCorpus",
    "Explanation",
    "Explanations",
    "ForwardMismatchError",
    "GradientMismatchError",
    "ImageExplanation",
    "InputError",
    "InsidePlace",
    "Conserves",
    "DevicePlan",
    "Dictionary",
    "LxtFxError",
    "Maximised",
    "ModelChangedError",
    "NoRuleError",
    "TracedBranchError",
    "Only",
    "Patching",
    "PerturbationCurves",
    "Places",
    "places",
    "PositionRelevance",
    "QKAttribution",
    "position_relevance",
    "Record",
    "RecursiveAnswer",
    "Regularisers",
    "Removal",
    "Rule",
    "RuleTable",
    "Target",
    "TopUnits",
    "TunedTable",
    "UnknownNameError",
    "UnsupportedVersionError",
    "certificate",
    "circuit_faithfulness",
    "circuit_scores",
    "compare",
    "corpus",
    "conditional",
    "diff",
    "embed",
    "explain",
    "explain_corpus",
    "explain_image",
    "explore",
    "Latent",
    "latent",
    "labels",
    "Lens",
    "lens",
    "LensReading",
    "load",
    "maximise",
    "nn",
    "perturbation_curves",
    "place",
    "plan",
    "progress",
    "qk_attribution",
    "read_bench",
    "read_mib_circuit",
    "register_packed",
    "relevance_of",
    "save",
    "serve",
    "show",
    "splice",
    "steer",
    "transform",
    "tune",
    "watch",
]

_NAMES = {
    "lxt_fx.attribution.embeddings": "embed",
    "lxt_fx.attribution.many_targets": "relevance_of",
    "lxt_fx.attribution.places": "InsidePlace Places places",
    "lxt_fx.attribution.target": "Target",
    "lxt_fx.attribution.watch": "watch",
    "lxt_fx.base.progress": "progress",
    "lxt_fx.compiler.explained": "Explained",
    "lxt_fx.compiler.record": "Record",
    "lxt_fx.compiler.saved_module": "load save",
    "lxt_fx.compiler.place": "place",
    "lxt_fx.compiler.transform": "transform",
    "lxt_fx.corpora.explain_corpus": "explain_corpus",
    "lxt_fx.corpora.explainer": "CorpusExplainer",
    "lxt_fx.corpora.result": "ExplainedCorpus",
    "lxt_fx.explorer.explore": "explore",
    "lxt_fx.explorer.server.serve": "serve",
    "lxt_fx.faithfulness.removal_curves": "PerturbationCurves perturbation_curves",
    "lxt_fx.faithfulness.removed_units": "Removal",
    "lxt_fx.faithfulness.search": "tune",
    "lxt_fx.faithfulness.tuned_table": "TunedTable",
    "lxt_fx.inside.circuits.activation_patching": "Patching activation_patching",
    "lxt_fx.inside.circuits.circuit_faithfulness": "CircuitFaithfulness circuit_faithfulness",
    "lxt_fx.inside.circuits.circuit_scores": "circuit_scores",
    "lxt_fx.inside.circuits.mib": "read_mib_circuit",
    "lxt_fx.inside.circuits.qk_attribution": "qk_attribution",
    "lxt_fx.inside.circuits.qk_result": "QKAttribution",
    "lxt_fx.inside.circuits.scores_result": "CircuitScores",
    "lxt_fx.inside.conditional": "conditional",
    "lxt_fx.inside.corpus.read_corpus": "corpus",
    "lxt_fx.inside.corpus.result": "Corpus",
    "lxt_fx.inside.dictionaries.dictionary": "Dictionary",
    "lxt_fx.inside.corpus.labels": "labels",
    "lxt_fx.inside.latent": "latent",
    "lxt_fx.inside.latent_result": "Latent TopUnits",
    "lxt_fx.inside.lens.lens": "lens",
    "lxt_fx.inside.lens.lens_result": "Lens",
    "lxt_fx.inside.lens.reading": "LensReading",
    "lxt_fx.inside.maximise": "Maximised Regularisers maximise",
    "lxt_fx.inside.position_relevance": "PositionRelevance position_relevance",
    "lxt_fx.inside.dictionaries.splice": "splice",
    "lxt_fx.inside.steering.steer": "steer",
    "lxt_fx.inside.units": "Only",
    "lxt_fx.ledger.arrivals": "Landing",
    "lxt_fx.ledger.causes": "Cause",
    "lxt_fx.ledger.ledger": "Ledger",
    "lxt_fx.ledger.run_audit": "audit",
    "lxt_fx.packed.known": "register_packed",
    "lxt_fx.planning.device_plan": "DevicePlan",
    "lxt_fx.planning.plan": "plan",
    "lxt_fx.referee.bench": "bench read_bench",
    "lxt_fx.referee.results": "BenchResults",
    "lxt_fx.report.certificates": "Certificate certificate",
    "lxt_fx.report.printed_graph": "diff show",
    "lxt_fx.results.account": "Account",
    "lxt_fx.results.comparison": "Comparison compare",
    "lxt_fx.results.explanation": "Explanation",
    "lxt_fx.results.explanations": "Explanations",
    "lxt_fx.results.kinds": "AnswerRelevance ImageExplanation",
    "lxt_fx.results.recursive_answer": "RecursiveAnswer",
    "lxt_fx.rule_table.rule": "Conserves Rule",
    "lxt_fx.rule_table.table": "RuleTable",
    "lxt_fx.rule_table.tables": "TABLES",
    "lxt_fx.tasks.answers": "answer_relevance",
    "lxt_fx.tasks.explain": "explain explain_image",
}
"""The public names of each module, as under TYPE_CHECKING above, where a type checker reads them."""

_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """A public name, or a module of the package, imported now."""
    if name in _MODULE_OF:
        globals()[name] = found = getattr(importlib.import_module(_MODULE_OF[name]), name)
        return found
    if name.isidentifier() and not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
