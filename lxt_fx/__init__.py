"""lxt_fx: the compiler that makes any PyTorch transformer explain itself.

`transform(model)` gives a torch.fx GraphModule that computes what the model computes and whose `backward()` passes
relevance (AttnLRP, Achtibat et al. 2024). `explain` is the short way from a text to a heatmap, `show` prints the graph.
"""

from lxt_fx import flow, functional, nn
from lxt_fx.answer import AnswerRelevance, answer_relevance
from lxt_fx.audit import audit
from lxt_fx.certificate import Certificate, certificate
from lxt_fx.embed import embed
from lxt_fx.errors import (
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
from lxt_fx.explain import explain, explain_image
from lxt_fx.explained import Explained, Record
from lxt_fx.explanation import Explanation
from lxt_fx.image_explanation import ImageExplanation
from lxt_fx.landing import Landing
from lxt_fx.ledger import Ledger
from lxt_fx.many import relevance_of
from lxt_fx.perturbation import PerturbationCurves, perturbation_curves
from lxt_fx.pipeline import transform
from lxt_fx.rule import Keep, Rule, RuleTable
from lxt_fx.rule_table.tables import TABLES
from lxt_fx.save import load, save
from lxt_fx.shares import Cause
from lxt_fx.show import diff, show
from lxt_fx.target import Target
from lxt_fx.tune import tune
from lxt_fx.tuned import TunedTable
from lxt_fx.units import Removal
from lxt_fx.version import __version__ as __version__
from lxt_fx.watch import watch

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
