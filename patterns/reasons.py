"""Refusals as data: every place laconic leaves alone says why, under a registered code."""

from __future__ import annotations

from dataclasses import dataclass

CODES: dict[str, str] = {
    "not-normalised": "the graph could not be retraced to the normal form; it runs through Inductor unchanged",
    "graph-break": "Dynamo ended the graph in the middle of the model; a layer on both sides of the place is not found",
    "detector-failed": "a detector raised an exception, so no site of its kind was found in this graph",
    "not-proven": "the site rebuilt from its fields did not reproduce the subgraph it came from",
    "weights-escape": "an interior value (attention weights, scores) is read outside the site",
    "mutation": "an in-place operation touches the site",
    "unsupported-op": "an operation inside the candidate has no place in the pattern",
    "cross-attention": "queries and keys are different tokens, and the rewrite needs one set of them",
    "unsupported-mask": "a mask or bias the rewrite cannot express",
    "unsupported-softmax": "scores become weights in a way the rewrite cannot express (soft cap, sinks, temperature)",
    "unsupported-dtype": "an element type the rewrite has no meaning or kernel for",
    "unsupported-shape": "a rank, size or dynamic dimension the rewrite cannot take",
    "unsupported-device": "no provider on this device",
    "data-dependent": "values decide how many elements there are, so the graph ends before the pattern is complete",
    "wrong-axis": "softmax or contraction runs over an axis that is not the key axis",
    "requires-grad": "the rewrite has no gradient and an input needs one",
    "dropout-active": "dropout is active inside the site",
    "weight-not-parameter": "the weight is computed in the graph, so its packed form cannot be kept across calls",
    "not-faster": "the rewrite would be slower than the original here",
    "nonlinear-state": "the carried state passes through a nonlinear operation, so its steps cannot be combined",
    "no-operator": "a recurrence of this kind is understood, but no operator computes it yet",
    "irregular-steps": "the steps of a loop are not one computation over consecutive elements",
    "higher-order": "a step reads a state older than the one before it",
    "tied-to-weights": "the compiler is told to fix weights or addresses, so blocks cannot share a compiled piece",
    "over-budget": "the measured error is above error_budget",
    "no-sample": "error_budget is set but no real sample input was available to measure with",
    "no-provider": "no registered provider supports this operation with these arguments",
    "no-session": "a cached pass ran outside laconic.session, so nothing was reused",
    "no-latent": "no graph output has the shape and type of a graph input, so there is nothing to extrapolate",
    "identity": "the setting leaves this site as it is, so nothing was rewritten",
    "no-site": "the pass found nothing in this graph it could rewrite",
    "region-not-reached": "a decorated region left no node in any compiled graph",
    "disabled": "switched off by laconic.disable",
    "rolled-back": "the rewritten graph failed a check and was rolled back",
    "pass-failed": "the pass raised an exception; the original graph is used",
    "overlap": "another rewrite already claims part of this site",
    "out-of-fuel": "LACONIC_FUEL was used up before this rewrite",
}


@dataclass(frozen=True)
class Reason:
    """Why something was refused.

    ``code`` is a key of :data:`CODES`; ``text`` one sentence for a person; ``nodes`` the names of the graph nodes
    concerned. A reason is truthy like any object, so checks return ``Reason | None`` and never a bare bool.
    """

    code: str
    text: str
    nodes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise KeyError(f"unregistered reason code {self.code!r}; add it to laconic.patterns.reasons.CODES")

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"
