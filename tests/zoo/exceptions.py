"""Architectures on which detection is known to differ from eager, and why. None of them is in the fast slice."""

from __future__ import annotations

_CHOSEN = "The experts that are hit are asked for in Python: the graph ends between the choice and the experts."

EXCEPTIONS: dict[str, str] = {
    "longt5": "Each layer is a graph of its own, so that no block repeats. All attentions are found.",
    "timm-sequencer": "torch.compile does not trace the LSTM module each layer runs: the graph ends before it, in every"
    " layer.",
    "switch": f"{_CHOSEN} Layers that hold them are in no single graph. Capturing sizes that depend on values changes"
    " nothing: a loop that turns as often as experts are hit is not unrolled.",
    "hidream": f"{_CHOSEN} Layers that hold them are in no single graph.",
    "canine": "The two encoders of characters have one layer each: nothing repeats.",
    **dict.fromkeys(("dbrx", "jetmoe"), f"{_CHOSEN} The layers are in no single graph."),
    "mochi": "Each attention loops over the batch and asks which tokens are no padding; a break in a loop leaves"
    " the whole attention to Python, in no graph. The layers around are cut in pieces.",
    "big-bird-sparse": "The plan of blocks is drawn by NumPy, so every layer is cut; and the graph with the attentions"
    " (five softmaxes in each layer, for blocks of queries) puts all their weights into one matrix. Four of the five"
    " are found; the fifth is over keys of four products, and its weights go into four more.",
    "nllb-moe": f"{_CHOSEN} Layers that hold them are in no single graph.",
}
