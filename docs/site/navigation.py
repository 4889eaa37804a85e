"""What the site holds, in order: the parts of its navigation, and the names of the API reference by what they are for."""

from __future__ import annotations

PARTS: dict[str, tuple[str, ...]] = {
    "Start": ("install", "explorer", "shell", "coming_from"),
    "Tutorials": (
        "tutorials/first_heatmap",
        "tutorials/chat_answer",
        "tutorials/minilm",
        "tutorials/dino",
        "tutorials/whisper",
        "tutorials/latent_features",
        "tutorials/own_rule",
        "tutorials/audit",
    ),
    "How to": ("guide", "tasks", "corpora", "latent", "views", "vision", "packed", "tuning", "benchmark",
               "benchmark_tables", "ledger", "certificate", "switch_off", "circuits", "circuits_study",
               "two_hop", "distributed"),
    "Reference": (
        "api/explain",
        "api/compile",
        "api/inside",
        "api/prove",
        "api/rules",
        "api/results",
        "api/bridges",
        "api/distributed",
        "api/errors",
        "papers",
        "methods",
        "rules",
        "rule_forms",
        "ops",
        "supported_models",
    ),
    "Costs": ("cost", "speed", "first_answer", "memory", "placement", "scale"),
    "Behind it": ("how_it_works", "adding_a_rule", "contributing", "changelog", "citing"),
}
"""Pages by part, without their ending. One that is not there is left out; one that is there and not here is a warning of
Sphinx, and so an error of the build."""

FROM_ABOVE = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
"""Pages that lie outside of docs/, by their name in the site."""

GROUPS: dict[str, tuple[str, str]] = {
    "explain": (
        "From a model and an input to relevance.",
        "explain explain_image explain_corpus CorpusExplainer ExplainedCorpus answer_relevance relevance_of "
        "perturbation_curves Removal bench read_bench Target embed explore serve progress",
    ),
    "compile": (
        "The compiler, what it makes of a model, and its printed graph.",
        "transform place Explained Record show diff save load register_packed plan DevicePlan",
    ),
    "inside": (
        "Relevance of heads, neurons and features; what they stand for; the model without them.",
        "places Places InsidePlace watch latent Latent TopUnits position_relevance PositionRelevance Only conditional "
        "steer edits corpus Corpus labels Dictionary splice lens Lens LensReading maximise Maximised Regularisers "
        "circuit_scores CircuitScores circuit_faithfulness CircuitFaithfulness activation_patching Patching "
        "qk_attribution QKAttribution read_mib_circuit",
    ),
    "prove": (
        "Where all of the relevance went, and which rule every op got.",
        "audit Ledger Cause Landing flow certificate Certificate",
    ),
    "rules": (
        "Tables, rules, and rules as functions and modules.",
        "TABLES RuleTable Rule Conserves rules tune TunedTable functional nn",
    ),
    "results": (
        "What the functions return.",
        "Explanation Explanations AnswerRelevance RecursiveAnswer ImageExplanation Account compare Comparison "
        "PerturbationCurves BenchResults",
    ),
    "bridges": (
        "Other libraries' interfaces over ours, each behind an extra of its name. "
        "[Coming from another library](../coming_from.md) has their code beside ours.",
        "bridges.captum bridges.inseq bridges.lxt bridges.pipelines bridges.quantus bridges.transformer_lens "
        "bridges.zennit",
    ),
    "distributed": (
        "Over several processes of `torch.distributed` ([Several processes](../distributed.md)).",
        "distributed",
    ),
    "errors": (
        "Every error raised on purpose is an `LxtFxError` that says which node or argument, why, and what to do next.",
        "LxtFxError InputError UnknownNameError CallError CaptureError TracedBranchError NoRuleError NonFiniteError "
        "LedgerError ForwardMismatchError GradientMismatchError ModelChangedError UnsupportedVersionError",
    ),
}
"""The API reference: for each page one sentence and its names. `rules` and the bridges are modules that `lxt_fx.__all__`
leaves out."""
