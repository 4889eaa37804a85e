"""Capture: `torch.export` of a model in which each kind of layer is traced once and then copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from lxt_fx.base.torch_internals import unlifted
from lxt_fx.passes.capture.copy_layers import NoTwinsError, copy_layers
from lxt_fx.passes.capture.layer_kinds import Kind
from lxt_fx.passes.capture.layers_once import LayersOnce


@dataclass(frozen=True, slots=True)
class Copied:
    """How many layers a graph has that are copies of a traced one, and in sentences which were traced although they looked
    like others, and why."""

    layers: int = 0
    not_copied: tuple[str, ...] = ()


def exported_once(
    model: nn.Module, export: Callable[[], ExportedProgram], kinds: Sequence[Kind]
) -> tuple[ExportedProgram, GraphModule, Copied]:
    """What `export` gives, as a graph module, and what was copied in it.

    Layers of one kind, which are the same code with other weights, are traced once. Nothing is taken on trust: attributes
    in which they differ raise where they are used, the last of them is traced too and compared node by node, and layers
    that do things on the side are found in the graph. What turns out to be different is traced in full. Raises what
    `export` raises.
    """
    said = list[str]()
    while kinds:
        once = LayersOnce(kinds)
        try:
            with once.traced():
                exported = export()
            if not any(kind.why_not for kind in kinds):
                gm = unlifted(exported)
                if (lost := _lost_place(gm, model)) is None:
                    return exported, gm, Copied(copy_layers(gm, model, once), tuple(said))
                for kind in kinds:
                    kind.why_not = f"the tracer takes {lost}, a part of a layer, for a part of the model"
        except NoTwinsError:
            pass
        except Exception as error:  # whatever tracing raises, it may be because of a layer that was not traced
            if not any(kind.why_not for kind in kinds):
                if not once.marked:
                    raise
                for kind in {*once.marked.values(), *(template.kind for _, template in once.alike.values())}:
                    kind.why_not = f"the export failed with them ({type(error).__name__})"
        said += [_sentence(kind) for kind in kinds if kind.why_not]
        kinds = [kind for kind in kinds if not kind.why_not]
    exported = export()
    return exported, unlifted(exported), Copied(0, tuple(said))


_NOWHERE = "_empty_nn_module_stack_from_metadata_hook"
"""What torch writes in the place of a path for a node that no module's code makes: a size."""


def _lost_place(gm: GraphModule, model: nn.Module) -> str | None:
    """A path of the module stack that is none of the model's: where a layer is taken out of a list by its index, the tracer
    follows it by a proxy, which is not what runs here."""
    known = {name for name, _ in model.named_modules(remove_duplicate=False)} | {_NOWHERE}
    stacks = [node.meta.get("nn_module_stack") or {} for node in gm.graph.nodes]
    paths = (path.partition("@")[0] for stack in stacks for path, _ in stack.values())
    return next((path for path in paths if path not in known), None)


def _sentence(kind: Kind) -> str:
    return f"{len(kind.layers)} layers ({kind.first}, ...) were traced one by one: {kind.why_not}"


__all__ = ["Copied", "exported_once"]
