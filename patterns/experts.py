"""Mixtures of experts: a router that chooses, and experts whose results come together weighted by it.

Tokens reach their experts in many ways (sorted by expert, one mask for each, weights gathered for each token, one-hot
products). None of them matters here: from the router's outputs on, the graph is followed to the places where all that
depends on them comes together, and the region up to there is compared with the meaning of a mixture of experts.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator

from torch.fx import Node

from .describe import shape_of, size_hint
from .effects import Effects, effects_of
from .experts_site import Choice, Regions
from .graph import NormalGraph
from .hidden import Refused, wrapper
from .nodes import argument, mutates, operation, readers, scalar, tensor
from .sites import Linear, MixtureOfExperts, Site, Sites

_CHOICES = ("topk", "argmax", "max")

# From the router's outputs to its choice: scores, groups and masks.
_ROUTER = 48
# From the router's outputs to the sum over experts: an unrolled loop over 128 experts has 2,600 operations.
_LONGEST = 8192
# No layer has more experts; a choice among more is one of words.
_MOST = 1024
# Places where everything comes together that are tried as the result.
_TRIES = 4


def find_experts(graph: NormalGraph, sites: Sites) -> list[Site]:
    """The mixtures of experts of ``graph``, proven, in order.

    A router is a linear layer whose outputs are chosen from by ``topk``, ``argmax`` or ``max``. Refused: a choice that
    leaves the graph before its experts run (``data-dependent``), a region whose interior is read or written elsewhere,
    and one that computes something else (``not-proven``). Linear time; no guard on a symbolic size.
    """
    routers = _routers(graph, sites)
    if not routers:
        return []
    effects = effects_of(graph)
    regions = Regions(graph, sites, effects)
    nodes = list(graph.module.graph.nodes)
    found: list[Site] = []
    for router, choices in routers:
        try:
            site = _behind(router, choices, regions, nodes, effects, f"moe.{len(found)}")
        except Refused as refused:
            sites.refusals.append(refused.reason)
            continue
        if site is not None:
            found.append(site)
    return found


def _routers(graph: NormalGraph, sites: Sites) -> list[tuple[Linear, list[Node]]]:
    """Linear layers whose outputs something chooses from, with the choices in graph order."""
    by_output: dict[Node, Linear] = {site.output: site for site in sites.of(Linear)}
    chosen: dict[Node, list[Node]] = defaultdict(list)
    for node in graph.module.graph.nodes:
        if operation(node) in _CHOICES and isinstance(node.args[0], Node):
            pending, seen, above = [node.args[0]], {node}, set[Node]()
            while pending and len(seen) < _ROUTER:
                item = pending.pop()
                if item in by_output:
                    above.add(item)
                elif item not in seen and item.op == "call_function":
                    pending += item.all_input_nodes
                seen.add(item)
            if len(above) == 1:
                chosen[above.pop()].append(node)
    return [(by_output[output], choices) for output, choices in chosen.items()]


def _choices(choices: list[Node], experts: int) -> list[Choice]:
    """How the choice can be read: as the last one alone, or as experts taken one after the other."""
    last = _choice(choices, experts)
    single = {item.args[0] for item in choices if _length(item) == experts and _chosen(item) == 1}
    successive = [Choice(len(single))] if last == Choice(1) and len(single) > 1 else []
    return successive + ([last] if last is not None else [])


def _choice(choices: list[Node], experts: int) -> Choice | None:
    """How many experts are chosen; and groups of experts, where those are chosen first."""
    *before, last = choices
    if _length(last) != experts or _chosen(last) is None:
        return None
    for best in before:
        if 1 < _length(best) < experts and experts % _length(best) == 0 and _chosen(best) is not None:
            groups = experts // _length(best)
            rank = len(shape_of(best.args[0]))  # type: ignore[arg-type]
            for kept in before:
                over_groups = _length(kept) == groups and len(shape_of(kept.args[0])) == rank - 1  # type: ignore[arg-type]
                if over_groups and _chosen(kept) is not None:
                    return Choice(_chosen(last) or 1, (groups, _chosen(kept) or 1, _chosen(best) or 1))
    return Choice(_chosen(last) or 1)


def _over_last(node: Node) -> bool:
    try:
        dim = argument(node, "dim")
    except KeyError:
        return False
    rank = len(shape_of(node.args[0]))  # type: ignore[arg-type]
    return dim is not None and dim % rank == rank - 1


def _length(node: Node) -> int:
    """How many there are to choose from; 0 for a choice over another axis."""
    size = shape_of(node.args[0])[-1] if _over_last(node) else 0  # type: ignore[arg-type]
    return size if isinstance(size, int) else 0


def _chosen(node: Node) -> int | None:
    """How many are chosen."""
    count = scalar(argument(node, "k")) if operation(node) == "topk" else 1.0
    return None if count is None else int(count)


def _behind(
    router: Linear, choices: list[Node], regions: Regions, nodes: list[Node], effects: Effects, name: str
) -> MixtureOfExperts | None:
    """The mixture of experts that ``router`` chooses for; None when there are no experts behind it. Raises Refused."""
    experts = shape_of(router.output)[-1]
    possible = _choices(choices, experts) if isinstance(experts, int) and experts > 1 else []
    if not possible:
        return None
    refused: Refused | None = None
    for tried, output in enumerate(_joins(router, nodes, effects)):
        if tried == _TRIES:
            break
        for x, choice in itertools.product(chain(router.input), possible):
            try:
                site = regions.site(router, x, output, choice, name)
            except Refused as error:
                refused = refused or error  # the first place is the nearest miss
                continue
            if site is not None:
                return regions.with_shared(site)
    if refused is not None:
        raise refused
    return None


def chain(node: Node) -> list[Node]:
    """``node`` and what it is a view or cast of, the first of them first: others may read any of them."""
    found = [node]
    while (source := wrapper(found[-1], -1)) is not None and operation(found[-1]) != "dropout":
        found.append(source)
    return found[::-1]


def _joins(router: Linear, nodes: list[Node], effects: Effects) -> Iterator[Node]:
    """Places where all that depends on the router's outputs comes together in one value as large as its input.

    Raises Refused (``data-dependent``) when the choice of experts leaves the graph first.
    """
    position, start, x = effects.position, router.output, router.input
    depends, written, tried = {start}, set[Node](), False
    reach, total, width = _last_use(start, effects), _count(x), size_hint(shape_of(x)[-1])
    for node in nodes[position[start] + 1 : position[start] + _LONGEST]:
        if not any(read in depends or effects.root(read) in written for read in node.all_input_nodes):
            continue
        if node.op == "output":
            chosen = [read for read in node.all_input_nodes if read in depends and not _is_float(read)]
            if not tried and chosen and size_hint(shape_of(start)[-1]) <= _MOST:
                raise Refused("data-dependent", "the choice of experts leaves the graph before any of them runs", start)
            return
        depends.add(node)
        if mutates(node):
            written.add(effects.root(node))
        value = tensor(node)
        if value is not None and value.dim() and value.dtype.is_floating_point and reach <= position[node]:
            if _count(node) == total and size_hint(value.shape[-1]) == width:
                tried = True
                yield node
        reach = max(reach, _last_use(node, effects))


def _is_float(node: Node) -> bool:
    value = tensor(node)
    return value is not None and value.dtype.is_floating_point


def _last_use(node: Node, effects: Effects) -> int:
    users = readers(node)
    if mutates(node):
        users += readers(effects.root(node))
    return max((effects.position[user] for user in users), default=0)


def _count(node: Node) -> int:
    return math.prod(map(size_hint, shape_of(node)))
