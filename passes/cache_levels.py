"""Where a policy keeps results: the whole network, each stack of blocks, or each residual branch inside the blocks."""

from __future__ import annotations

from torch.fx import Node

from ..patterns.reasons import Reason
from ..patterns.sites import ATTENTIONS, Block, FeedForward
from .base import PlanContext, nearest
from .cached_regions import around_blocks, around_branch, other_branches, stacks
from .latent import whole_network
from .plan import CachedRegion, Plan
from .reuse import CachePolicy, unfit

LEVELS = ("network", "blocks", "layers")


def check_level(level: object) -> None:
    """ValueError unless ``level`` is one of :data:`LEVELS`."""
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {level!r}; {nearest(level, LEVELS)}")


def regions_at(
    level: str, context: PlanContext, policy: CachePolicy, latent: str | None = None, watch: tuple[Node, ...] = ()
) -> Plan:
    """One region for the network, one for each stack, or one for each attention and feed-forward in a block."""
    if level == "network":
        return whole_network(context.graph, policy, latent, *watch)
    reason = unfit(context.graph)
    if reason is not None:
        return Plan(refusals=[(None, reason)])
    return _stacks(context, policy, watch) if level == "blocks" else _layers(context, policy, watch)


def found_stacks(context: PlanContext) -> list[list[Block]] | Reason:
    """The graph's stacks of blocks; a ``no-site`` reason if there is none."""
    found = stacks(context.sites)
    return found or Reason("no-site", "no repeated blocks were found in this graph")


def _stacks(context: PlanContext, policy: CachePolicy, watch: tuple[Node, ...]) -> Plan:
    found = found_stacks(context)
    if isinstance(found, Reason):
        return Plan(refusals=[(None, found)])
    plan = Plan()
    for number, blocks in enumerate(found):
        region = around_blocks(context.graph, policy, blocks, f"stack {number}", watch=watch)
        if isinstance(region, Reason):
            plan.refusals.append((blocks[0], region))
        else:
            plan.regions.append(region)
    return plan


def _layers(context: PlanContext, policy: CachePolicy, watch: tuple[Node, ...]) -> Plan:
    found = found_stacks(context)
    if isinstance(found, Reason):
        return Plan(refusals=[(None, found)])
    inside = {name: block for blocks in found for block in blocks for name in block.members}
    order = {node: index for index, node in enumerate(context.graph.module.graph.nodes)}
    plan = Plan()
    regions: list[CachedRegion] = []
    taken: set[Node] = set()
    for site in context.sites.of(*ATTENTIONS, FeedForward):
        if site.id not in inside:
            continue
        region = around_branch(context.graph, policy, site, stops=inside[site.id].entries)
        if isinstance(region, Reason):
            plan.refusals.append((site, region))
        elif taken.isdisjoint(region.exits):
            # An attention and a feed-forward that one layer projects together are one branch.
            taken.update(region.exits)
            regions.append(region)
    for block in (block for blocks in found for block in blocks):
        regions += other_branches(context.graph, policy, block, taken)
    regions.sort(key=lambda region: order[region.exits[-1]])
    for number, region in enumerate(regions):
        plan.regions.append(
            CachedRegion(
                entries=(*region.entries, *watch),
                exits=region.exits,
                policy=policy,
                site=region.site,
                role=f"layer {number}",
            )
        )
    return plan
