"""``vmap`` inside a Dynamo graph: its regions are traced on their own, because a pre-dispatch trace loses them.

Dynamo inlines ``torch.vmap`` (and what is built on it, such as ``associative_scan``) into flat stretches between
``_vmap_increment_nesting`` and ``_vmap_decrement_nesting``. Inside one, values are batched wrappers that the
pre-dispatch tracer does not know, and it would record them as constants.

Private torch modules are touched here on purpose; docs/private_torch.md lists them with the versions checked.
"""

from __future__ import annotations

from typing import Any

from torch._functorch import predispatch
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.utils._python_dispatch import _disable_current_modes

from .whole_layers import WRITTEN_OUT

_BEGIN = "_vmap_increment_nesting"
_END = "_vmap_decrement_nesting"


class BatchingInterpreter(Interpreter):
    """Runs a Dynamo graph, replacing every ``vmap`` stretch by the operators it stands for, already batched.

    Operators that are a whole layer are written out on the way.
    """

    def __init__(self, module: GraphModule, fake_mode: Any) -> None:
        super().__init__(module)
        self.fake_mode = fake_mode
        self._regions = _regions(module.graph)
        self._inside = {node for region in self._regions.values() for node in region}

    def run_node(self, n: Node) -> Any:
        if n in self._regions:
            return self._run_region(self._regions[n])
        if n in self._inside:
            return self.env.get(n)  # computed with the node that opens its region
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(WRITTEN_OUT.get(target, target), args, kwargs)

    def _run_region(self, region: list[Node]) -> None:
        inside = set(region)
        inputs = list(dict.fromkeys(o for node in region for o in node.all_input_nodes if o not in inside))
        outputs = [node for node in region if any(user not in inside for user in node.users)]
        graph = Graph()
        copies: dict[Node, Node] = {node: graph.placeholder(node.name) for node in inputs}
        for node in region:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output([copies[node] for node in outputs])
        values = [self.env[node] for node in inputs]
        with disable_proxy_modes_tracing(), _disable_current_modes(), self.fake_mode:
            batched = make_fx(Interpreter(GraphModule(self.module, graph)).run, tracing_mode="real")(*values)
        self.env.update(zip(outputs, Interpreter(batched).run(*values), strict=True))


def _regions(graph: Graph) -> dict[Node, list[Node]]:
    """The outermost ``vmap`` stretches, by their first node."""
    regions: dict[Node, list[Node]] = {}
    begin, end = getattr(predispatch, _BEGIN, None), getattr(predispatch, _END, None)
    if begin is None:
        return regions
    depth, first = 0, None
    for node in graph.nodes:
        if node.op == "call_function" and node.target is begin:
            if depth == 0:
                first = node
                regions[node] = []
            depth += 1
        if first is not None and depth:
            regions[first].append(node)
        if node.op == "call_function" and node.target is end:
            depth -= 1
    return regions
