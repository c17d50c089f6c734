"""How a router chooses: from scores of all experts to one weight for each expert, zero for those not chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """The choice of ``top_k`` experts for each token and their weights.

    ``scores`` are the ``softmax`` of the router's outputs over all experts (Shazeer et al. 2017; Fedus et al. 2022)
    or the ``sigmoid`` of each (DeepSeek-AI 2024, equation 15). ``normalised``: the chosen weights are divided by their
    sum (plus ``epsilon``), which for a softmax is the softmax over the chosen alone. All are multiplied by ``scale``.
    With ``groups`` above one only experts of the ``top_groups`` groups with the highest sum of their ``group_best``
    best scores may be chosen. Scores ``contested`` (Liu et al. 2024, "GRIN", section 2.2): experts are chosen one after
    the other, and the weight of each is its softmax among the experts not yet chosen that are not behind it by more
    than ``threshold`` of the larger magnitude. ``by_outputs``: a bias for the choice is added to the router's outputs
    and not to the scores.
    """

    top_k: int
    scores: str = "softmax"
    normalised: bool = False
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    group_best: int = 1
    threshold: float = 0.0
    epsilon: float = 0.0
    by_outputs: bool = False

    def weights(self, outputs: Tensor, selection_bias: Tensor | None = None) -> Tensor:
        """Weights ``[..., experts]`` from the router's ``outputs [..., experts]``.

        ``selection_bias [experts]`` is added for the choice only (loss-free balancing, Wang et al. 2024).
        """
        if self.scores == "contested":
            return self._contested(outputs) * self.scale
        scores = torch.softmax(outputs, -1) if self.scores == "softmax" else torch.sigmoid(outputs)
        merit = outputs if self.by_outputs else scores
        merit = merit if selection_bias is None else merit + selection_bias.flatten()
        if self.groups > 1:
            grouped = merit.unflatten(-1, (self.groups, -1))
            best = grouped.topk(self.group_best, -1).values.sum(-1)
            kept = torch.zeros_like(best, dtype=torch.bool).scatter(-1, best.topk(self.top_groups, -1).indices, True)
            merit = grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(-2)
        chosen = merit.topk(self.top_k, -1).indices
        weights = scores.gather(-1, chosen)
        if self.normalised:
            weights = weights / (weights.sum(-1, keepdim=True) + self.epsilon)
        return torch.zeros_like(scores).scatter(-1, chosen, weights * self.scale)

    def _contested(self, outputs: Tensor) -> Tensor:
        weights, left = torch.zeros_like(outputs), outputs
        for _ in range(self.top_k):
            best, chosen = left.max(-1, keepdim=True)
            behind = (best - outputs) / outputs.abs().maximum(best) > self.threshold
            among = left.masked_fill(behind, float("-inf")).softmax(-1)
            weights = weights.scatter(-1, chosen, among.gather(-1, chosen))
            left = left.scatter(-1, chosen, float("-inf"))
        return weights
