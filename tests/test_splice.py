"""`splice`: the relevance of features, error and bias against hooks on the torch model that share nothing with it, and what
a module with a dictionary still is: a ledger that closes, two forms, files, further graphs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from golden_cases import relative
from shared_captures import explained, one_worker, shared_model
from torch import Tensor, nn

import lxt_fx
from lxt_fx.compiler.step_checks import gradients_on_example
from lxt_fx.passes.capture.example import Example

pytestmark = pytest.mark.usefixtures("captures_in_files")

WIDTH, FEATURES = 32, 48
IDS = torch.tensor([[5, 9, 17, 23, 1, 2]])
GIVEN = {"input_ids": IDS}
EXACT = 1e-9
"""float64, relative to the largest entry."""
OTHER_PATHS = ("attnlrp", "cp_lrp", "gradient", "gim", "epsilon_plus", "detached_jacobian")
LATER = pytest.mark.slow("rules whose sources have the same names in the ledger")

KINDS: dict[str, dict[str, Any]] = {
    "relu": {},
    "topk": {"k": 5},
    "batch_topk": {"threshold": 0.4},
    "jump_relu": {"threshold": torch.linspace(0.1, 0.8, FEATURES)},
    "gated": {"b_gate": torch.linspace(-0.5, 0.5, FEATURES), "r_mag": torch.linspace(-0.4, 0.4, FEATURES),
              "b_mag": torch.linspace(-0.2, 0.3, FEATURES)},
}  # fmt: skip


def dictionary(
    kind: str = "relu", dtype: torch.dtype = torch.float64, width: int = WIDTH, written: int | None = None, **settings: Any
) -> lxt_fx.Dictionary:
    draw = torch.Generator().manual_seed(7)
    W_enc = torch.randn(width, FEATURES, generator=draw) / width**0.5
    W_dec = torch.randn(FEATURES, written or width, generator=draw) / 4
    b_enc, b_dec = 0.1 * torch.randn(FEATURES, generator=draw), 0.3 * torch.randn(written or width, generator=draw)
    more = {**KINDS[kind], **settings}
    biases = {"b_dec": b_dec} if kind == "gated" else {"b_enc": b_enc, "b_dec": b_dec}
    given = {"W_enc": W_enc, "W_dec": W_dec, **biases, **more}
    cast = {name: found.to(dtype) if isinstance(found, Tensor) else found for name, found in given.items()}
    return lxt_fx.Dictionary(**cast, kind=kind)  # type: ignore[arg-type]


def written_by_hand(found: lxt_fx.Dictionary, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features and reconstruction by the formulas of the papers, in other code. Which features are active is constant."""
    t: Any = found.tensors
    z = (x - t["b_dec"] if found.center else x) @ t["W_enc"] + t.get("b_enc", 0)
    if found.kind == "gated":
        magnitude = x_magnitude = z * t["r_mag"].exp() + t["b_mag"]
        active = (z + t["b_gate"] > 0) & (x_magnitude > 0)
        f = torch.where(active, magnitude, 0)
    elif found.kind == "topk":
        least = z.sort(-1, descending=True).values[..., found.k - 1 : found.k]  # type: ignore[operator]
        f = torch.where((z >= least) & (z > 0), z, 0)
    else:
        f = torch.where((z > t.get("threshold", 0)) & (z > 0), z, 0)
    return f, f @ t["W_dec"] + t["b_dec"]


class Hand:
    """A hook that puts a dictionary behind a module of the model, with detach for what is constant."""

    def __init__(self, found: lxt_fx.Dictionary) -> None:
        self.dictionary, self.seen = found, dict[str, Tensor]()

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        f, reconstruction = written_by_hand(self.dictionary, h)
        error = (h - reconstruction).detach().requires_grad_()
        result = reconstruction + error
        self.seen = {"features": f, "error": error, "result": result}
        return (result, *output[1:]) if isinstance(output, tuple) else result

    def relevance(self, logit: Tensor, leaf: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """That of the parts, and that of the leaf."""
        values = [*self.seen.values(), leaf]
        parts = [x.detach() * g for x, g in zip(values, torch.autograd.grad(logit, values), strict=True)]
        return dict(zip(self.seen, parts[:-1], strict=True)), parts[-1]


@contextmanager
def hooked(module: nn.Module, found: lxt_fx.Dictionary) -> Iterator[Hand]:
    hand = Hand(found)
    handle = module.register_forward_hook(hand)
    try:
        yield hand
    finally:
        handle.remove()


def seen(spliced: lxt_fx.Explained, *places: str, **inputs: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The relevance at the places, and that of the leaves, for one logit."""
    inputs = inputs or {"input_ids": IDS}
    with lxt_fx.watch(spliced, *places) as inside:
        output, leaves = spliced.with_leaves(**inputs)
        logit = output.logits[0, -1, 3] if output.logits.dim() == 3 else output.logits[0, 3]
        logit.backward(logit.detach() if spliced.record.form == "explicit" else None)
    explicit = spliced.record.form == "explicit"
    relevance = {name: leaf.grad if explicit else leaf.detach() * leaf.grad for name, leaf in leaves.items()}
    return {name: found.relevance for name, found in inside.items()}, relevance


PARTS = {"residual.1.features": "features", "residual.1.error": "error", "residual.1": "result"}


@one_worker("llama")
@pytest.mark.parametrize("kind", KINDS)
def test_relevance_is_that_of_a_hook_under_the_plain_gradient(kind: str) -> None:
    model, found = shared_model("llama", torch.float64), dictionary(kind)
    spliced = lxt_fx.splice(explained("llama", torch.float64, rules="gradient"), "residual.1", found, kwargs=GIVEN)
    ours, leaf = seen(spliced, *PARTS)
    embeds = model.get_input_embeddings()(IDS).detach().requires_grad_()  # type: ignore[operator]
    with hooked(model.model.layers[0], found) as hand:  # type: ignore[union-attr, index]
        theirs, of_leaf = hand.relevance(model(inputs_embeds=embeds).logits[0, -1, 3], embeds)
    for place, part in PARTS.items():
        assert relative(ours[place], theirs[part]) < EXACT, place
    assert relative(leaf["inputs_embeds"], of_leaf) < EXACT
    assert 0 < (theirs["features"] != 0).double().mean() < 0.9, "some features are active and some are not"


class Gated(nn.Module):
    """Two residual blocks with a norm and a gate. `by_hand` gives products and activations the backward of AttnLRP: with
    detach, and not with an op of the package."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.ModuleList(nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3)) for _ in range(2))
        self.streams = nn.ModuleList(nn.Identity() for _ in range(2))
        self.head = nn.Linear(WIDTH, 7)
        self.by_hand = False

    def forward(self, x: Tensor) -> Tensor:
        for (gate, up, down), stream in zip(self.blocks, self.streams, strict=True):
            variance = x.pow(2).mean(-1, keepdim=True) + 1e-6
            n = x * (variance.detach() if self.by_hand else variance).rsqrt()
            a, b = gate(n), up(n)
            if self.by_hand:
                a = a * (nn.functional.silu(a) / a).detach()
                product = (a * b.detach() + a.detach() * b) / 2
            else:
                product = nn.functional.silu(a) * b
            x = stream(x + down(product))
        return self.head(x)


@pytest.mark.parametrize("kind", KINDS)
def test_relevance_is_that_of_a_hook_under_attnlrp(kind: str) -> None:
    net, found = Gated().double().eval(), dictionary(kind, center=True)
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    place = f"%{next(reversed(lxt_fx.transform(net, (x,))._values().calls['blocks.0.2'])).leaving[0].name}"
    transformed = lxt_fx.transform(net, (x,))
    (after,) = [user for node in transformed.graph.nodes if f"%{node.name}" == place for user in node.users]
    spliced = lxt_fx.splice(transformed, f"%{after.name}", found, (x,))
    given = x.clone().requires_grad_()
    names = [name for name in lxt_fx.places(spliced) if name.endswith(("features", "error"))]
    assert len(names) == 2, list(lxt_fx.places(spliced))
    with lxt_fx.watch(spliced, *names, "dictionary.*") as inside:
        spliced(given)[1, 2, 3].backward()
    net = copy.deepcopy(net)
    net.by_hand = True
    other = x.clone().requires_grad_()
    with hooked(net.streams[0], found) as hand:
        theirs, of_leaf = hand.relevance(net(other)[1, 2, 3], other)
    for name in inside:
        part = next((part for part in ("features", "error") if name.endswith(part)), "result")
        assert relative(inside[name].relevance, theirs[part]) < EXACT, name
    assert len(inside) == 3
    assert relative(x * given.grad, of_leaf) < EXACT  # type: ignore[operator]
    assert torch.allclose(spliced(x), transformed(x), rtol=0, atol=1e-14)


@one_worker("llama")
@pytest.mark.parametrize(
    ("table", "dtype"),
    [
        *(pytest.param(table, torch.float64, marks=[] if table in OTHER_PATHS else LATER) for table in lxt_fx.TABLES),
        ("attnlrp", torch.float32),
    ],
    ids=str,
)
def test_the_ledger_closes_with_features_bias_and_error(table: str, dtype: torch.dtype) -> None:
    kind = list(KINDS)[list(lxt_fx.TABLES).index(table) % len(KINDS)]
    spliced = lxt_fx.splice(explained("llama", dtype, rules=table), "residual.1", dictionary(kind, dtype), kwargs=GIVEN)
    assert spliced.record.forward_difference < (1e-14 if dtype is torch.float64 else 1e-6)
    ledger = lxt_fx.audit(spliced, GIVEN, target=3)
    ledger.check()
    assert float(ledger.residual.abs().max() / ledger.scale().max()) < (EXACT if dtype is torch.float64 else 1e-4)
    here = [e for e in ledger.entries if e.place.module.startswith("dictionary.residual_1") and bool(e.amount.any())]
    assert lxt_fx.Cause.ERROR in {entry.cause for entry in here}
    assert (lxt_fx.Cause.BIAS, "dictionary.residual_1.b_dec") in {(entry.cause, entry.name) for entry in here}
    parts = seen(spliced, *PARTS)[0]
    amount = {place: float(found.double().sum()) for place, found in parts.items()}
    (error,) = [float(entry.amount.sum()) for entry in here if entry.cause is lxt_fx.Cause.ERROR]
    assert error == pytest.approx(amount["residual.1.error"], rel=1e-4)


@one_worker("llama")
@pytest.mark.parametrize("table", ["attnlrp", "cp_lrp", "gradient"])
def test_features_bias_and_error_add_up_to_the_value_times_its_gradient(table: str) -> None:
    """Equation by equation: R_k = f_k d_k . g, R_e = e . g, R_b = b . g with g at h, and their sum is h . g."""
    found = dictionary("jump_relu")
    spliced = lxt_fx.splice(explained("llama", torch.float64, rules=table), "residual.1", found, kwargs=GIVEN)
    with lxt_fx.watch(spliced, *PARTS) as inside:
        output, leaves = spliced.with_leaves(input_ids=IDS)
        output.logits[0, -1, 3].backward()
    assert leaves["inputs_embeds"].grad is not None
    h, f, e = (inside[place].value.detach() for place in ("residual.1", "residual.1.features", "residual.1.error"))
    g = inside["residual.1"].value.grad
    assert g is not None
    relevance = {place: inside[place].relevance for place in PARTS}
    assert relative(relevance["residual.1.features"], f * (g @ found.tensors["W_dec"].T)) < EXACT
    assert relative(relevance["residual.1.error"], e * g) < EXACT
    bias = (found.tensors["b_dec"] * g).sum()
    total = relevance["residual.1.features"].sum() + relevance["residual.1.error"].sum() + bias
    assert abs(float(total - (h * g).sum())) < EXACT * float((h * g).abs().sum())


@one_worker("llama")
@pytest.mark.parametrize("kind", KINDS)
def test_explicit_form_gives_the_relevance_of_the_fast_one(kind: str) -> None:
    found = dictionary(kind)
    given = [
        lxt_fx.splice(explained("llama", torch.float64, form=form, epsilon=1e-9), "residual.1", found, kwargs=GIVEN)
        for form in ("gradient", "explicit")
    ]
    (fast, fast_leaf), (explicit, explicit_leaf) = (seen(each, *PARTS) for each in given)
    for place in PARTS:
        assert relative(explicit[place], fast[place]) < 1e-6, place  # Llama casts its norms to float32
    assert relative(explicit_leaf["inputs_embeds"], fast_leaf["inputs_embeds"]) < 1e-6


@one_worker("gpt2")
@pytest.mark.parametrize("stop", [False, True])
def test_the_fused_graph_passes_what_the_lowered_graph_passes(stop: bool) -> None:
    """A plain call runs the one, `watch` the other."""
    found = dictionary("topk")
    spliced = lxt_fx.splice(explained("gpt2", torch.float64), "residual.1", found, kwargs=GIVEN, stop=stop)
    (embeds,) = (leaf.detach() for leaf in spliced.with_leaves(input_ids=IDS)[1].values())
    example = Example(dict(spliced._prepared((), {"inputs_embeds": embeds})[1]), {})
    fused, lowered = (gradients_on_example(spliced, example, fused=fused) for fused in (True, False))
    for one, other in zip(fused, lowered, strict=True):
        assert (not bool(other.any())) if stop else relative(one, other) < EXACT
        assert bool(one.any()) is not stop


@one_worker("gpt2")
def test_with_stop_relevance_ends_at_features_error_and_bias() -> None:
    given, found = explained("gpt2", torch.float64), dictionary("gated")
    on, stopped = (lxt_fx.splice(given, "residual.1", found, kwargs=GIVEN, stop=stop) for stop in (False, True))
    passing, ending = seen(on, *PARTS), seen(stopped, *PARTS)
    for place in PARTS:
        assert relative(ending[0][place], passing[0][place]) < EXACT, place
    assert bool(passing[1]["inputs_embeds"].any()) and not bool(ending[1]["inputs_embeds"].any())
    ledger = lxt_fx.audit(stopped, GIVEN, target=3)
    ledger.check()
    causes = {cause: float(amount.sum()) for cause, amount in ledger.by_cause().items()}
    assert causes[lxt_fx.Cause.FEATURE] == pytest.approx(float(ending[0]["residual.1.features"].sum()), rel=1e-9)
    assert float(ledger.sources[0].relevance.abs().sum()) == 0.0
    after = [e for e in ledger.entries if e.place.module.startswith(("transformer.h.0", "dictionary.residual_1.encoder"))]
    assert {entry.cause for entry in after if bool(entry.amount.any())} == {lxt_fx.Cause.FEATURE}


@one_worker("llama")
def test_the_model_and_the_dictionary_stay_as_they_were() -> None:
    model, found = tiny.llama().double(), dictionary("jump_relu")
    found = lxt_fx.Dictionary(**{n: nn.Parameter(t) for n, t in found.tensors.items()}, kind="jump_relu")  # type: ignore[arg-type]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules, grads = [id(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    before = {name: (id(tensor), tensor.clone()) for name, tensor in found.tensors.items()}
    spliced = lxt_fx.splice(model, "residual.1", found)
    expected = model(IDS).logits.detach()
    seen(spliced, *PARTS)
    assert [id(m) for m in model.modules()] == modules and [p.requires_grad for p in model.parameters()] == grads
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    held = {**dict(spliced.named_buffers()), **dict(spliced.named_parameters())}
    assert all(tensor.grad is None for tensor in found.tensors.values())
    for name, (identity, value) in before.items():
        assert id(found.tensors[name]) == identity and torch.equal(found.tensors[name], value)
        assert held[f"dictionary.residual_1.{name}"] is found.tensors[name], "shared, not copied"
    assert relative(spliced(input_ids=IDS).logits, expected) < 1e-6
    said = [item.why for item in lxt_fx.certificate(spliced).not_proven]
    assert any("compared without the dictionary at residual.1" in why for why in said)


@one_worker("llama")
def test_several_dictionaries_stand_in_one_module() -> None:
    """Two of the stream, a second one at the same place, and one that explains the features of another."""
    spliced = explained("llama", torch.float64)
    expected = spliced(input_ids=IDS).logits
    for place in ("residual.0", "residual.2", "residual.2"):
        spliced = lxt_fx.splice(spliced, place, dictionary("relu"), kwargs=GIVEN)
    spliced = lxt_fx.splice(spliced, "residual.0.features", dictionary("topk", width=FEATURES), kwargs=GIVEN)
    assert relative(spliced(input_ids=IDS).logits, expected) < 1e-12
    names = [name for name in lxt_fx.places(spliced) if name.endswith(("features", "features.2"))]
    assert names == [
        "residual.0.features.features", "residual.0.features", "residual.2.features", "residual.2.features.2"
    ]  # fmt: skip
    relevance, leaf = seen(spliced, *names)
    assert all(bool(found.any()) for found in [*relevance.values(), leaf["inputs_embeds"]])
    ledger = lxt_fx.audit(spliced, GIVEN)
    ledger.check()
    errors = {e.name for e in ledger.entries if e.cause is lxt_fx.Cause.ERROR}
    assert errors == {f"dictionary.residual_{n}" for n in ("0", "0_features", "2", "2__2")}


@one_worker("bert")
def test_the_other_places_of_a_model_stay_where_they_are() -> None:
    """A dictionary puts cuts of its own into the stream; no layer begins or ends there. BERT has its norms behind sums."""
    for name in ("bert", "llama"):
        given = explained(name, torch.float64)
        before = lxt_fx.places(given)
        spliced = lxt_fx.splice(given, "residual.1", dictionary(), kwargs=GIVEN)
        after = lxt_fx.places(spliced)
        assert set(after) == {*before, "residual.1.features", "residual.1.error"}
        assert after["residual.1"].node != before["residual.1"].node
        assert {n: p.node for n, p in after.items() if n in before and n != "residual.1"} == {
            n: p.node for n, p in before.items() if n != "residual.1"
        }
        assert after["residual.1.features"].axes == ("batch", "tokens", "features")


@one_worker("llama")
def test_a_module_that_was_read_from_a_file_has_its_dictionary(tmp_path: Path) -> None:
    spliced = lxt_fx.splice(explained("llama", torch.float64), "residual.1", dictionary("topk"), kwargs=GIVEN)
    lxt_fx.save(spliced, tmp_path / "spliced.safetensors")
    loaded = lxt_fx.load(tmp_path / "spliced.safetensors")
    assert list(lxt_fx.places(loaded)) == list(lxt_fx.places(spliced))
    ours, theirs = seen(spliced, *PARTS), seen(loaded, *PARTS)
    assert all(relative(theirs[0][place], ours[0][place]) < 1e-12 for place in PARTS)
    with pytest.raises(lxt_fx.InputError, match="loaded from a file"):
        lxt_fx.splice(loaded, "residual.1", dictionary())


@one_worker("llama")
def test_a_spliced_module_is_put_under_another_table_and_asked_in_other_ways() -> None:
    found, model = dictionary("batch_topk"), tiny.llama().double()
    spliced = lxt_fx.splice(model, "residual.1", found)
    other = lxt_fx.transform(spliced, kwargs=GIVEN, rules="gradient")
    assert list(lxt_fx.places(other)) == list(lxt_fx.places(spliced))
    direct = lxt_fx.splice(lxt_fx.transform(model, rules="gradient"), "residual.1", found)
    assert relative(seen(other, *PARTS)[0]["residual.1.features"], seen(direct, *PARTS)[0]["residual.1.features"]) < EXACT
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.float64).masked_fill(torch.ones(6, 6).triu(2).bool(), -1e30)
    with lxt_fx.watch(spliced, "residual.1.features") as inside:
        answer = spliced(input_ids=IDS, attention_mask=mask).logits  # a mask of other dims: a further graph
    assert relative(answer, model(IDS, attention_mask=mask).logits.detach()) < 1e-6
    assert relative(answer, spliced(input_ids=IDS).logits) > 1e-3, "this mask is another one"
    assert inside["residual.1.features"].value.shape == (1, 6, FEATURES), "the further graph has the dictionary too"


@one_worker("llama")
def test_positions_and_checkpoints_give_the_same_relevance() -> None:
    whole = seen(lxt_fx.splice(explained("llama", torch.float64), "residual.1", dictionary(), kwargs=GIVEN), *PARTS)
    last = lxt_fx.splice(explained("llama", torch.float64, positions=5), "residual.1", dictionary(), kwargs=GIVEN)
    assert last(input_ids=IDS).logits.shape[1] == 1
    pieces = lxt_fx.splice(explained("llama", torch.float64, checkpoint="layers"), "residual.1", dictionary(), kwargs=GIVEN)
    end = lxt_fx.splice(explained("llama", torch.float64), "residual.2", dictionary(), kwargs=GIVEN)
    narrowed = lxt_fx.transform(end, kwargs=GIVEN, positions="last")
    found = seen(last, *PARTS)
    assert relative(found[0]["residual.1.features"], whole[0]["residual.1.features"]) < 1e-6
    output, leaves = pieces.with_leaves(input_ids=IDS)
    output.logits[0, -1, 3].backward()
    (leaf,) = leaves.values()
    assert leaf.grad is not None
    assert relative(leaf.detach() * leaf.grad, whole[1]["inputs_embeds"]) < 1e-6
    assert pieces.segments is not None and len(pieces.segments.starts) == 2
    features = seen(narrowed, "residual.2.features")[0]["residual.2.features"]
    assert features.shape == (1, 1, FEATURES), "only the last token is encoded"


@one_worker("gpt2")
def test_a_transcoder_reads_one_place_and_writes_another() -> None:
    found = dictionary("relu", W_skip=torch.linspace(-0.1, 0.1, WIDTH * WIDTH).reshape(WIDTH, WIDTH))
    model = shared_model("gpt2", torch.float64)
    given = explained("gpt2", torch.float64, rules="gradient")
    spliced = lxt_fx.splice(given, "mlp.1.output", found, kwargs=GIVEN, reads="transformer.h.1.ln_2")
    parts = ("mlp.1.output.features", "mlp.1.output.error", "mlp.1.output", "mlp.1.neurons")
    ours, leaf = seen(spliced, *parts)
    read: list[Tensor] = []
    hand = Hand(found)

    def write(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        f, reconstruction = written_by_hand(found, read[0])
        reconstruction = reconstruction + read[0] @ found.tensors["W_skip"].T
        error = (output - reconstruction).detach().requires_grad_()
        hand.seen = {"features": f, "error": error, "result": reconstruction + error}
        return hand.seen["result"]

    block: Any = model.transformer.h[1]  # type: ignore[union-attr, index]
    hooks = [block.ln_2.register_forward_hook(lambda m, i, x: read.append(x)), block.mlp.register_forward_hook(write)]
    embeds = model.get_input_embeddings()(IDS).detach().requires_grad_()  # type: ignore[operator]
    theirs, of_leaf = hand.relevance(model(inputs_embeds=embeds).logits[0, -1, 3], embeds)
    for hook in hooks:
        hook.remove()
    for place, part in zip(parts, ("features", "error", "result"), strict=False):
        assert relative(ours[place], theirs[part]) < EXACT, place
    assert relative(leaf["inputs_embeds"], of_leaf) < EXACT
    assert not bool(ours["mlp.1.neurons"].any()), "what the MLP itself computes is the error's, and passes nothing on"
    with pytest.raises(lxt_fx.InputError, match="is computed after"):
        lxt_fx.splice(given, "mlp.0.output", found, kwargs=GIVEN, reads="mlp.1.output")


@one_worker("llama")
def test_heads_are_read_side_by_side_or_one_by_one() -> None:
    given = explained("llama", torch.float64)
    expected = given(input_ids=IDS).logits
    for width, shape in ((32, (1, 6, FEATURES)), (8, (1, 4, 6, FEATURES))):
        spliced = lxt_fx.splice(given, "attention.1.heads", dictionary("topk", width=width), kwargs=GIVEN)
        assert relative(spliced(input_ids=IDS).logits, expected) < 1e-12
        relevance, _ = seen(spliced, "attention.1.heads.features", "attention.1.heads")
        assert relevance["attention.1.heads.features"].shape == shape
        lxt_fx.audit(spliced, GIVEN).check()


@one_worker("llama")
def test_features_of_heads_side_by_side_are_those_of_the_input_of_the_projection() -> None:
    model, found = shared_model("llama", torch.float64), dictionary("jump_relu")
    spliced = lxt_fx.splice(explained("llama", torch.float64), "attention.1.heads", found, kwargs=GIVEN)
    read: list[Tensor] = []
    hook = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda m, given: read.append(given[0]))  # type: ignore[union-attr, index]
    with torch.no_grad():
        model(IDS)
    hook.remove()
    with lxt_fx.watch(spliced, "attention.1.heads.features", "attention.1.heads") as inside:
        spliced.with_leaves(input_ids=IDS)[0].logits[0, -1, 3].backward()
    features, heads = inside["attention.1.heads.features"], inside["attention.1.heads"]
    assert relative(features.value.detach(), written_by_hand(found, read[0])[0]) < 1e-6
    g = heads.value.grad.transpose(1, 2).flatten(2)  # type: ignore[union-attr]
    assert relative(features.relevance, features.value.detach() * (g @ found.tensors["W_dec"].T)) < EXACT


@one_worker("vit")
def test_a_vision_transformer_and_a_batch_of_padded_texts() -> None:
    pixels = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    given = {"pixel_values": pixels}
    spliced = lxt_fx.splice(explained("vit", torch.float64), "residual.1", dictionary("topk"), kwargs=given)
    lxt_fx.audit(spliced, given).check()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    texts = {"input_ids": torch.tensor([[5, 9, 3, 1], [7, 2, 0, 0]]), "attention_mask": mask}
    padded = lxt_fx.splice(explained("llama", torch.float64), "residual.1", dictionary("topk"), kwargs=GIVEN)
    alone = seen(padded, "residual.1.features", input_ids=torch.tensor([[7, 2]]))[0]["residual.1.features"]
    with lxt_fx.watch(padded, "residual.1.features") as inside:
        padded.with_leaves(**texts)[0].logits[1, 1, 3].backward()
    assert relative(inside["residual.1.features"].relevance[1, :2], alone[0]) < 1e-6
    assert not bool(inside["residual.1.features"].relevance[0].any())


@one_worker("llama")
@pytest.mark.parametrize(
    ("trained", "place", "warns"),
    [
        ("blocks.1.hook_resid_pre", "residual.1", False),
        ("blocks.1.hook_resid_pre", "model.layers.0", False),  # its output
        ("blocks.1.hook_resid_post", "residual.2", False),
        ("blocks.1.hook_resid_pre", "residual.2", True),
        ("blocks.1.hook_resid_pre", "model.layers.1", True),
        ("blocks.12.hook_resid_pre", "residual.1", True),  # this model has no such layer
        ("model.layers.0", "residual.1", False),
        ("model.layers.0", "residual.2", True),
        ("blocks.1.hook_mlp_in", "mlp.1.output", False),
        ("blocks.0.hook_mlp_in", "mlp.1.output", True),
        ("a place of yours", "residual.1", False),
        ("", "residual.1", False),
    ],
)
def test_a_dictionary_of_another_place_gives_a_warning(
    trained: str, place: str, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in decoding or of the place never shows in the forward, since e is what is left."""
    found = dictionary(place=trained)
    monkeypatch.setattr("lxt_fx.inside.dictionaries.splice.edited", lambda explained, *given: explained)  # seconds each
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lxt_fx.splice(explained("llama", torch.float64), place, found, kwargs=GIVEN)
    assert any(f"trained at {trained}" in str(one.message) for one in said) is warns


REFUSED: dict[str, tuple[dict[str, Any], type[lxt_fx.LxtFxError], str]] = {
    "width": ({"place": "mlp.1.neurons"}, lxt_fx.InputError, r"32 wide, and mlp.1.neurons \[.*,48\] is 48 wide"),
    "place": ({"place": "residual.7"}, lxt_fx.UnknownNameError, "nearest are residual"),
    "several": ({"place": "residual.*"}, lxt_fx.InputError, "selects 3: residual.0, residual.1, residual.2"),
    "dtype": ({"dictionary": dictionary(dtype=torch.float32)}, lxt_fx.InputError, r"float32, and residual.1 is float64"),
    "device": ({"dictionary": dictionary().to("meta")}, lxt_fx.InputError, r"on meta, and residual.1 on cpu; give"),
    "no dictionary": ({"dictionary": nn.Linear(2, 2)}, lxt_fx.InputError, "a dictionary is a lxt_fx.Dictionary"),
    "heads": ({"place": "attention.1.heads", "dictionary": dictionary(width=16)}, lxt_fx.InputError, "8 wide in each of 4"),
}


@one_worker("llama")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_spliced_is_refused(name: str) -> None:
    given, error, said = REFUSED[name]
    chosen = {"place": "residual.1", "dictionary": dictionary(), **given}
    with pytest.raises(error, match=said):
        lxt_fx.splice(explained("llama", torch.float64), kwargs=GIVEN, **chosen)


@one_worker("llama")
def test_a_node_is_not_looked_for_in_another_graph() -> None:
    """There it may be another value, and since e is what is left, no forward would show it."""
    found = lxt_fx.transform(tiny.MODELS["llama"]().double())
    node = lxt_fx.places(found)["mlp.1.output"].node
    spliced = lxt_fx.splice(found, f"%{node}", dictionary())
    with pytest.raises(lxt_fx.CallError, match=f"needs another graph, in which %{node} may be another value"):
        spliced(input_ids=torch.tensor([[3, 4, 5]]), position_ids=torch.arange(3)[None] + 3, output_hidden_states=True)


@one_worker("llama")
def test_a_further_graph_does_not_hold_what_the_first_module_is_steered_by() -> None:
    model = tiny.MODELS["llama"]().double()
    found = lxt_fx.transform(model)
    spliced = lxt_fx.splice(found, "residual.1", dictionary())
    call = {"input_ids": IDS, "position_ids": torch.arange(IDS.shape[1])[None] + 3, "output_hidden_states": True}
    with lxt_fx.steer(found, {"mlp.0.neurons": lxt_fx.edits.scale(0)}):
        inside = spliced(**call).logits
    torch.testing.assert_close(inside, model(**call).logits, rtol=0, atol=1e-9)
    assert torch.equal(spliced(**call).logits, inside)


def test_a_dictionary_too_large_for_its_dtype_is_refused() -> None:
    found = dictionary(dtype=torch.float32)
    found.tensors["W_dec"] = found.tensors["W_dec"] * 3e4
    model = lxt_fx.transform(tiny.MODELS["llama"]().half())
    with pytest.raises(lxt_fx.ForwardMismatchError, match="the dictionary at residual.1.* too large for torch.float16"):
        lxt_fx.splice(model, "residual.1", found.to(torch.float16))


def test_a_value_of_0_is_one_that_a_rescaled_dictionary_leaves() -> None:
    """Such as the embedding of a padding token: nothing to rescale, so f W_dec + b_dec is multiplied by |x| = 0."""
    model = tiny.MODELS["llama"]().double()
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 0
    spliced = lxt_fx.splice(model, "residual.0", dictionary(rescale=True))
    ids = torch.tensor([[0, 3, 4]])
    torch.testing.assert_close(spliced(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=1e-12)


@one_worker("llama")
def test_the_dtype_of_a_dictionary_is_not_that_of_autocast() -> None:
    model = lxt_fx.transform(tiny.MODELS["llama"]())
    with torch.autocast("cpu", torch.bfloat16):
        spliced = lxt_fx.splice(model, "residual.1", dictionary(dtype=torch.float32))
    features = next(node for node in spliced.graph.nodes if node.name == lxt_fx.places(spliced)["residual.1.features"].node)
    assert features.meta["val"].dtype is torch.float32


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_features_that_are_steered_change_the_value_and_the_error_stays(kind: Any) -> None:
    """Switched off, a feature leaves h - f_k d_k; against a hook on the model that subtracts it."""
    model, draw = tiny.MODELS["llama"]().double(), torch.Generator().manual_seed(1)
    rows = torch.randn(20, 32, generator=draw, dtype=torch.float64) / 4
    dictionary = lxt_fx.Dictionary(rows.T.contiguous(), rows, kind=kind, k=5 if kind == "topk" else None)
    spliced, inputs = lxt_fx.splice(model, "residual.1", dictionary), {"inputs_embeds": torch.randn(2, 4, 32).double()}
    off = torch.zeros(20, dtype=torch.float64)
    off[[3, 11]] = 1

    def without(layer: Any, given: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        changed = h - (dictionary.encode(h) * off) @ rows
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with lxt_fx.steer(spliced, {"residual.1.features": lxt_fx.edits.scale(0, units=[3, 11])}):
        found = spliced(**inputs).logits
        ledger = lxt_fx.audit(spliced, inputs, lambda out: out.logits[:, -1, 1])
        with lxt_fx.steer(spliced, {"residual.1.features": lxt_fx.edits.scale(0)}):
            nothing = spliced(**inputs).logits
    hook = model.model.layers[0].register_forward_hook(without)
    expected = model(**inputs).logits
    hook.remove()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert float((found - model(**inputs).logits).detach().abs().max()) > 1e-3
    assert float((nothing - found).detach().abs().max()) > 1e-3
    ledger.check()
