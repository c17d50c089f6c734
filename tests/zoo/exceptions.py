"""Architectures on which detection is known to differ from eager, and why. None of them is in the fast slice."""

from __future__ import annotations

_BREAKS = (
    "Its own code breaks the graph (decisions on values); each graph is searched by itself, so what is cut is lost."
)
_MOE = "Layers of experts are not found in this spelling."
_KINDS = "Two layers of two kinds (shifted and plain windows, rotary positions or none): nothing repeats."
_DEPTH = "The layers have constants that depend on their depth: one program cannot stand for another."
_ENDS = "The first or the last layer computes something else (a second attention, no result for the text)."
_DELTA = "A gated delta rule, written in chunks with a triangular solve: no diagonal recurrence, refused."
_LOOP = "The loop carries several values that depend on each other (a running maximum): no first-order recurrence."
_CHUNKS = "Chunked windows: the scores are assembled from overlapping pieces of several products, not from one."
_STAR = "The activation has parameters of its own (a scale and an offset), so it is no fixed function."

EXCEPTIONS: dict[str, str] = {
    "longformer": _CHUNKS,
    "led": f"{_CHUNKS} The decoder is found.",
    "longt5": f"{_BREAKS} Weights also leave through a break.",
    "mobilebert": "One block of detection holds several of the feed-forward layers in a row.",
    "canine": "The two layers are the only repetition and lie between convolutions of the whole sequence.",
    "funnel": "The layers of a stage differ in the sizes they read (pooled queries).",
    "diffllama": _DEPTH,
    "xlnet": "The layers carry two streams whose second one is empty here.",
    "recurrent-gemma": _LOOP,
    "rwkv": f"{_LOOP} The first block normalises its input before it adds to it, so eager does not count it as one.",
    "qwen3-next": f"{_DELTA} {_MOE}",
    "qwen3.5": _DELTA,
    "minimax": f"{_MOE} Lightning attention works in blocks with decays by position: no plain recurrence.",
    "mixtral": _MOE,
    "qwen2-moe": _MOE,
    "qwen3-moe": _MOE,
    "olmoe": _MOE,
    "gpt-oss": _MOE,
    "granitemoe": _MOE,
    "phimoe": _MOE,
    "llama4": f"{_MOE} {_KINDS}",
    "deepseek-v3": _MOE,
    "dbrx": _BREAKS,
    "jetmoe": _BREAKS,
    "switch": f"{_BREAKS} The experts' own layers are then feed-forward layers of small graphs.",
    "timm-swin": _KINDS,
    "timm-swinv2": _KINDS,
    "swin": _KINDS,
    "timm-poolformer": f"{_STAR} Stages of two layers lie between layers of other widths.",
    "timm-convformer": f"{_STAR} Stages of two layers lie between layers of other widths.",
    "timm-xcit": "The two class-attention layers change one token only, which is then put back beside the others.",
    "timm-coat": "One serial stage's layers are counted with the parallel ones.",
    "timm-mvitv2": "Relative positions are added in five axes, as products of the query with two tables.",
    "timm-sequencer": _BREAKS,
}
