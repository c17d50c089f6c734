"""Classifier-free guidance inside one graph: the doubled batch at the entry, the weighted difference at the exit.

The exit is found first: a value that is ``u + s * (c - u)`` of the two halves of one result, whatever it is written as.
Then the entry: a batch that holds one value twice. Between them the halves must not meet, which is shown operation by
operation (:mod:`.guidance_halves`).
"""

from __future__ import annotations

import dataclasses

import sympy
from torch.fx import Node

from .conditioning import conditioning_inputs
from .describe import description, evaluated, ordered, same, shape_of
from .effects import Effects, effects_of
from .evaluate import concretely
from .graph import NormalGraph
from .guidance_exit import Exit, doubled_value, exits, half, weights
from .guidance_halves import Halves, Mixed
from .hidden import Refused
from .nodes import SIZE_READERS, operation, tensor
from .reasons import Reason
from .sites import Attention, Convolution, Guidance, Linear, Site, Sites

_MOST = 4
"""Exits looked at in one graph: each costs a walk over the network."""


def find_guidance(graph: NormalGraph, sites: Sites) -> tuple[list[Site], list[Reason]]:
    """Guidance sites in graph order, and why near misses were refused. Linear time; no guard on a symbolic size.

    ``output = u + s * (c - u)`` (Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", equation 6, there with
    ``w = s - 1``), where u and c are the halves of what the graph computes of ``x`` twice in one batch.
    """
    found: list[Site] = []
    refusals: list[Reason] = []
    order = list(graph.module.graph.nodes)
    entries = [(node, source) for node in order if (source := doubled_value(node)) is not None]
    # A table that is made for each row of the batch (positions, say) is doubled too, but is nothing a sampler moves.
    entries = [(node, source) for node, source in entries if _moves(graph, source)]
    if not entries:
        return [], []
    effects = effects_of(graph)
    for end in exits(order)[:_MOST]:
        above = _ancestors(end.result)
        starts = [(node, source) for node, source in entries if node in above]
        if not starts:
            continue
        try:
            found.append(_site(len(found), end, starts, above, graph, sites, effects))
        except (Refused, Mixed) as refused:
            refusals.append(refused.reason)
    return found, refusals


def _site(
    number: int,
    end: Exit,
    starts: list[tuple[Node, Node]],
    above: set[Node],
    graph: NormalGraph,
    sites: Sites,
    effects: Effects,
) -> Guidance:
    """The site around one exit. Raises Refused or Mixed."""
    latent = _latent(end, starts)
    starts = [(node, source) for node, source in starts if source is latent]
    doubled = starts[0][0]
    with concretely():
        halves = Halves(graph, [node for node, _ in starts], end, above)
        halves.walk()
    interior = frozenset((*halves.axes, *halves.scalars, *halves.parts, *end.interior))
    reason = effects.mutation((latent,), interior)
    if reason is not None:
        raise Refused.because(reason)
    others = [
        node
        for node in ordered(node for node in interior if node is not end.output)
        if any(user not in interior and operation(user) not in SIZE_READERS for user in node.users)
    ]
    reads = dict.fromkeys(read for node in ordered(interior) for read in node.all_input_nodes if read not in interior)
    first = (latent, *halves.cut)
    inputs = (*first, *(node for node in reads if node not in first))
    costs = {
        what: sympy.Integer(
            sum(
                evaluated(getattr(site, what), site.dimensions)
                for site in sites.of(Attention, Linear, Convolution)
                if site.interior <= interior
            )
        )
        for what in ("flops", "bytes")
    }
    site = Guidance(
        id=f"guidance.{number}",
        form="batched",
        latent=latent,
        doubled=doubled,
        result=end.result,
        unconditional=end.halves[1 - end.conditional],
        conditional=end.halves[end.conditional],
        order=("conditional", "unconditional") if end.conditional == 0 else ("unconditional", "conditional"),
        scale=end.scale,
        scale_factor=end.factor,
        scale_offset=end.offset,
        doubled_inputs=dict(halves.cut),
        batch_axes=dict(halves.axes),
        **costs,
        **description(end.output, interior, inputs, (end.output, *others)),
    )
    return dataclasses.replace(site, conditioning=conditioning_inputs(graph, sites, latent, end.result))


def _latent(end: Exit, starts: list[tuple[Node, Node]]) -> Node:
    """The doubled value that is like the halves of the result, where the time or a condition is doubled as well.

    Raises Refused where several are.
    """
    sources = list(dict.fromkeys(source for _, source in starts))
    wanted = shape_of(end.halves[0])
    alike = [
        source
        for source in sources
        if len(shape_of(source)) == len(wanted) and all(map(same, shape_of(source), wanted))
    ]
    # Without its learned variance, say, an output has fewer channels than the latent, but as many axes.
    near = alike or [source for source in sources if len(shape_of(source)) == len(wanted)]
    if len(sources) > 1 and len(near) != 1:
        raise Refused("unsupported-op", "more than one value is doubled on the way to the halves", starts[0][0])
    return near[0] if near else sources[0]


def _moves(graph: NormalGraph, node: Node) -> bool:
    """Whether a value is computed from a tensor that may be another one in every call."""
    return any(
        item.op == "placeholder" and not graph.is_static(item) and tensor(item) is not None for item in _ancestors(node)
    )


def _ancestors(node: Node) -> set[Node]:
    found, pending = {node}, [node]
    while pending:
        for read in pending.pop().all_input_nodes:
            if read not in found:
                found.add(read)
                pending.append(read)
    return found


def prove_guidance(site: Guidance, graph: NormalGraph) -> Reason | None:
    """None when the fields of ``site`` hold: the exit by values, the halves operation by operation, both in float64."""
    names = tuple(node.name for node in site.outputs)
    conditional = 0 if site.order[0] == "conditional" else 1
    halves = (site.unconditional, site.conditional) if conditional else (site.conditional, site.unconditional)
    if doubled_value(site.doubled) is not site.latent:
        return Reason("not-proven", "the batch does not hold one value twice", names)
    axis = site.batch_axes.get(site.result)
    if [half(node) for node in halves] != [(site.result, axis, index) for index in (0, 1)]:
        return Reason("not-proven", "the two values are not the halves of the result in this order", names)
    found = weights(site.outputs[0], halves)
    if found is None or (found.scale, found.factor, found.offset, found.conditional) != (
        site.scale,
        site.scale_factor,
        site.scale_offset,
        conditional,
    ):
        return Reason("not-proven", "the output is another combination of the halves", names)
    end = dataclasses.replace(found, result=site.result)
    above = _ancestors(site.result)
    starts = [node for node in site.batch_axes if node in above and doubled_value(node) is site.latent]
    try:
        with concretely():
            walked = Halves(graph, starts, end, above)
            walked.walk()
    except Mixed as refused:
        return refused.reason
    if walked.axes != dict(site.batch_axes) or walked.cut != dict(site.doubled_inputs):
        return Reason("not-proven", "the halves lie along other axes", names)
    return None
