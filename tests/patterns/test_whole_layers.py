"""Operators that are a whole layer, written out: the same numbers, and a compile sees into them."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from laconic.patterns.whole_layers import encoder_layer
from tests.zoo.measure import capture

_MASKS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "none": dict,
    "causal": lambda: {"src_mask": nn.Transformer.generate_square_subsequent_mask(7)},
    "padding": lambda: {"src_key_padding_mask": torch.arange(7).expand(2, 7) > 4},
    "both": lambda: {
        "src_mask": torch.ones(7, 7).triu(1).bool(),
        "src_key_padding_mask": torch.arange(7).expand(2, 7) > 4,
    },
    "everything": lambda: {"src_key_padding_mask": torch.tensor([[True] * 7, [False] * 7])},
}


@pytest.mark.parametrize("masks", sorted(_MASKS))
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_written_out_encoder_layer_is_the_operator(masks: str, norm_first: bool, activation: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 4, 20, activation=activation, batch_first=True, norm_first=norm_first).eval()
    operator = torch._transformer_encoder_layer_fwd
    x, given = torch.randn(2, 7, 12), _MASKS[masks]()
    with torch.no_grad():
        with mock.patch.object(torch, "_transformer_encoder_layer_fwd", side_effect=operator) as called:
            expected = layer(x, **given)
        result = encoder_layer(*called.call_args.args, **called.call_args.kwargs)
    assert bool(expected.isnan().any()) == (masks == "everything")
    torch.testing.assert_close(result, expected, equal_nan=True)


def test_a_compile_sees_into_the_layers() -> None:
    layer = nn.TransformerEncoderLayer(12, 4, 20, batch_first=True)
    graphs, reasons = capture(nn.TransformerEncoder(layer, 2).eval(), {"src": torch.randn(2, 7, 12)})
    (captured,) = graphs
    names = [str(node.target) for node in captured.graph.module.graph.nodes]
    assert not reasons and names.count("aten.scaled_dot_product_attention.default") == 2
