"""What the report says about a cut graph: one line for each cached region, one for each stack of shared blocks."""

from __future__ import annotations

from collections.abc import Callable

from ..passes.base import FACTORIES, Pass, Policy
from ..passes.plan import CachedRegion
from ..passes.report import GraphReport, RewriteRecord
from ..passes.reuse import CachePolicy
from ..patterns.reasons import Reason
from ..patterns.sites import Block, Site
from .cutting import Cutting


def note(cutting: Cutting, pass_name: str, report: GraphReport, site_id: Callable[[Site], str]) -> None:
    """Add the lines of ``cutting`` to the report, and what could not be cut out.

    ``pass_name`` is how the pass that shares blocks is written, ``site_id`` the id a site has in the report.
    """
    for item, text in cutting.refused:
        site = site_id(item.site) if item.site is not None else ""
        if isinstance(item, CachedRegion):
            reason = Reason("rolled-back", f"the graph cannot be cut at a cached region: {text}")
            report.refuse(reason, pass_name=spelled(item.policy)[0], site=site)
        else:
            reason = Reason("rolled-back", f"the graph cannot be cut around the block: {text}")
            report.refuse(reason, pass_name="share_blocks", site=site)
    for region in cutting.regions():
        policy = region.policy
        identity = isinstance(policy, CachePolicy) and policy.identity
        cutting.records[region] = RewriteRecord(
            spelled(policy)[1],
            site_id(region.site) if region.site is not None else "",
            "applied",
            "exact" if identity else policy.fidelity.value,
            "reuse across steps",
            provider="host",
        )
    report.rewrites += cutting.records.values()
    groups: dict[int, list[Block]] = {}
    for item in cutting.cuts:
        if isinstance(item.site, Block):
            groups.setdefault(item.site.stack, []).append(item.site)
    for first, *rest in groups.values():
        text = f"{len(rest) + 1} pieces of equal blocks"
        report.rewrites.append(
            RewriteRecord(pass_name, site_id(first), "applied", "reordered", text, provider="inductor")
        )


def spelled(policy: Policy) -> tuple[str, str]:
    """The verb of a policy's pass, and the call that makes it as the report spells it."""
    for name, factory in FACTORIES.items():
        for key, kind in factory.policies.items():
            if type(policy) is kind:
                return name, repr(Pass(name, key, policy))
    return "cache", repr(policy)
