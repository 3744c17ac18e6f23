"""Names: of the modules that an exporter found operators in, and such as are still free."""

from __future__ import annotations

from typing import Any

from normfold.graph.types import Node
from normfold.system.text import listed

SCOPES = "pkg.torch.onnx.name_scopes"
CLASSES = "pkg.torch.onnx.class_hierarchy"


def scopes(node: Node) -> tuple[str, ...]:
    """The module paths an exporter left on `node`, outermost first; the last entry names the operation itself."""
    return listed(node.metadata_props.get(SCOPES))[:-1]


def classes(node: Node) -> tuple[str, ...]:
    """The class names that belong to `scopes(node)`."""
    return listed(node.metadata_props.get(CLASSES))[:-1]


def node_name(node: Node) -> str:
    """What people call an operator: the module that an exporter names, else its own name, else its output's."""
    path = scopes(node)
    return (
        (path[-1] if path and path[-1] else None) or node.name or (node.outputs[0].name if node.outputs else "") or "?"
    )


def unused(base: str, taken: set[Any]) -> str:
    """A name that is not in `taken`, made of `base`; it is added."""
    name = base
    while name in taken:
        name = f"{name}.2"
    taken.add(name)
    return name
