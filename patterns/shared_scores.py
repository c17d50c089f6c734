"""Scores that several attentions read: each adds the other's to its own, or both take a softmax of the same ones.

To one softmax the scores of another are a bias, computed elsewhere. A rewrite puts something in the place of the
output and leaves what others still read, so such a site is as good as any; as long as those others are attentions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from torch.fx import Node

from .nodes import readers
from .reasons import Reason
from .sites import Attention, GatheredAttention

AnyAttention = Attention | GatheredAttention


def settle(sites: Mapping[AnyAttention, frozenset[Node]]) -> dict[AnyAttention, Reason | None]:
    """Each of the sites (given with the scores above its softmax), and why it is none if its scores escape.

    Sites whose scores nobody else reads stand; one that falls may take those it shares scores with along.
    """
    holders: Counter[Node] = Counter(node for site in sites for node in site.interior)
    sharing: dict[Node, list[AnyAttention]] = defaultdict(list)
    escapes: dict[AnyAttention, list[tuple[Node, Node]]] = {}
    for site, scores in sites.items():
        escapes[site] = [(node, user) for node in scores for user in readers(node) if user not in site.interior]
        for _, user in escapes[site]:
            sharing[user].append(site)
    reasons: dict[AnyAttention, Reason] = {}
    pending = [site for site in sites if escapes[site]]
    while pending:
        site = pending.pop()
        lost = next((escape for escape in escapes[site] if not holders[escape[1]]), None)
        if lost is None or site in reasons:
            continue
        names = (lost[0].name, lost[1].name)
        reasons[site] = Reason("weights-escape", f"{names[0]} is also read by {names[1]}", names)
        for node in site.interior:
            holders[node] -= 1
            if not holders[node]:
                pending += sharing[node]
    return {site: reasons.get(site) for site in sites}
