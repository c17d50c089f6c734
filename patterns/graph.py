"""The normal form as a value: a pre-dispatch ATen graph and the facts about where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch.fx import GraphModule, Node


@dataclass(eq=False)
class NormalGraph:
    """A graph in normal form.

    ``module`` holds pre-dispatch ATen (``aten.linear``, ``aten.softmax.int``, ``aten.scaled_dot_product_attention``
    whole) with a fake tensor in every ``node.meta["val"]``. ``source`` is the graph Dynamo handed over, untouched.
    Placeholders of both correspond by position.
    """

    module: GraphModule
    source: GraphModule
    fake_mode: Any
    grad_enabled: bool
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def placeholders(self) -> list[Node]:
        """Placeholder nodes in order; they correspond by position to the inputs the backend receives."""
        return self.module.graph.find_nodes(op="placeholder")

    @property
    def output(self) -> Node:
        """The single output node."""
        return next(iter(self.module.graph.find_nodes(op="output")))

    def is_static(self, node: Node) -> bool:
        """True for a placeholder that Dynamo marked as a parameter or buffer (same tensor on every call)."""
        return node.op == "placeholder" and bool(node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type"))
