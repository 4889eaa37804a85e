"""lxt_fx: the compiler that makes any PyTorch transformer explain itself.

`transform(model)` gives a torch.fx GraphModule that computes what the model computes and whose `backward()` passes
relevance (AttnLRP, Achtibat et al. 2024). `explain` is the short way from a text to a heatmap, `show` prints the graph.
"""

from lxt_fx import functional, nn
from lxt_fx.attribution.answer_relevance import AnswerRelevance, answer_relevance
from lxt_fx.attribution.embeddings import embed
from lxt_fx.attribution.image_explanation import ImageExplanation
from lxt_fx.attribution.inside import watch
from lxt_fx.attribution.many_targets import relevance_of
from lxt_fx.attribution.one_input import explain, explain_image
from lxt_fx.attribution.target import Target
from lxt_fx.attribution.text_explanation import Explanation
from lxt_fx.base.errors import (
    CallError,
    CaptureError,
    ForwardMismatchError,
    InputError,
    LedgerError,
    LxtFxError,
    NonFiniteError,
    NoRuleError,
    OtherWayError,
    UnknownNameError,
)
from lxt_fx.compiler.explained import Explained, Record
from lxt_fx.compiler.pipeline import transform
from lxt_fx.compiler.saved_module import load, save
from lxt_fx.faithfulness.removal_curves import PerturbationCurves, perturbation_curves
from lxt_fx.faithfulness.removed_units import Removal
from lxt_fx.faithfulness.search import tune
from lxt_fx.faithfulness.tuned_table import TunedTable
from lxt_fx.ledger import flow_graph as flow
from lxt_fx.ledger.arrivals import Landing
from lxt_fx.ledger.claimed import Cause
from lxt_fx.ledger.ledger import Ledger
from lxt_fx.ledger.run_audit import audit
from lxt_fx.report.certificates import Certificate, certificate
from lxt_fx.report.printed_graph import diff, show
from lxt_fx.rule_table.rule import Keep, Rule, RuleTable
from lxt_fx.rule_table.tables import TABLES
from lxt_fx.version import __version__ as __version__

__all__ = [
    "flow",
    "functional",
    "AnswerRelevance",
    "answer_relevance",
    "audit",
    "NonFiniteError",
    "LedgerError",
    "Ledger",
    "Landing",
    "Cause",
    "TABLES",
    "CallError",
    "CaptureError",
    "Certificate",
    "Explained",
    "Explanation",
    "ForwardMismatchError",
    "ImageExplanation",
    "InputError",
    "Keep",
    "LxtFxError",
    "NoRuleError",
    "OtherWayError",
    "PerturbationCurves",
    "Record",
    "Removal",
    "Rule",
    "RuleTable",
    "Target",
    "TunedTable",
    "UnknownNameError",
    "certificate",
    "diff",
    "embed",
    "explain",
    "explain_image",
    "load",
    "nn",
    "perturbation_curves",
    "relevance_of",
    "save",
    "show",
    "transform",
    "tune",
    "watch",
]
