"""Where Dynamo ended a graph before the model did: what lies on both sides is in no single graph, and not found."""

from __future__ import annotations

from pathlib import Path

from torch.fx import GraphModule

from ..patterns.describe import dotted, running_modules
from ..patterns.reasons import Reason


def cut_short(module: GraphModule) -> Reason | None:
    """Why Dynamo's graph ``module`` ends in the middle of a model, and after which part of it; None when it does not.

    The reason names the line of the user's code, the innermost module that was running, and what Dynamo says.
    """
    end = getattr(module, "compile_subgraph_reason", None)
    if end is None or not end.graph_break:
        return None
    said = str(end.reason).strip().partition("\n")[0]
    stack = end.user_stack
    line = f"{Path(stack[-1].filename).name}:{stack[-1].lineno}" if stack else "a line that is not known"
    running: list[str] = []
    for node in reversed(module.graph.nodes):
        running = [dotted(path) for path in running_modules(node)]
        if running:
            break
    inside = f" in {running[-1]}" if running and running[-1] else ""
    return Reason("graph-break", f"Dynamo ends the graph at {line}{inside}: {said}")
