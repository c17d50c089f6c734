"""Blocks of real models beside their eager execution: as many layers as ran, with exactly what went in and came out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from laconic.patterns import proof
from laconic.patterns.detect import detect
from laconic.patterns.graph import NormalGraph
from laconic.patterns.normalize import normalize
from laconic.patterns.sites import Block, Sites, Skip
from tests.models.repeated import REPEATED


@dataclass
class Executed:
    """One execution of a member of a module list, with every tensor it read and returned."""

    path: str
    reads: list[Tensor] = field(default_factory=list)
    returns: list[Tensor] = field(default_factory=list)


class Values(Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, module: GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.kept: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self.wanted:
            self.kept[n.name] = value.clone() if isinstance(value, Tensor) else value
        return value


class Run:
    """A model, executed eagerly with its list members watched, and as a normal form with its sites found."""

    def __init__(self, name: str, layers: int) -> None:
        self.module, args, kwargs = REPEATED[name](layers)
        self.executed: dict[str, list[Executed]] = {}
        handles = []
        for path, holder in self.module.named_modules():
            if isinstance(holder, nn.ModuleList | nn.Sequential):
                for key, member in holder.named_children():
                    handles += self._watch(path, f"{path}.{key}", member)
        captured: list[tuple[NormalGraph, list[Any]]] = []

        def backend(gm: GraphModule, inputs: list[Any]) -> Any:
            graph = normalize(gm, inputs)
            assert isinstance(graph, NormalGraph)
            captured.append((graph, list(inputs)))
            return gm.forward

        with torch.no_grad():
            self.module(*args, **kwargs)
            for handle in handles:
                handle.remove()
            torch._dynamo.reset()
            torch.compile(self.module, backend=backend)(*args, **kwargs)
        ((self.graph, self.inputs),) = captured
        self.sites: Sites = detect(self.graph)
        self.blocks: list[Block] = list(self.sites.of(Block))

    def _watch(self, home: str, path: str, member: nn.Module) -> list[Any]:
        row = Executed(path)

        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            row.reads = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.executed.setdefault(home, []).append(row)

        def leave(_: nn.Module, args: Any, result: Any) -> None:
            row.returns = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]

        return [
            member.register_forward_pre_hook(enter, with_kwargs=True),
            member.register_forward_hook(leave),
        ]

    def stacks(self) -> list[list[Block]]:
        found: dict[int, list[Block]] = {}
        for block in self.blocks:
            found.setdefault(block.stack, []).append(block)
        return list(found.values())

    def values(self, nodes: set[Node]) -> dict[Node, Any]:
        inputs = [value.detach() if isinstance(value, Tensor) else value for value in self.inputs]
        runner = Values(self.graph.module, {node.name for node in nodes})
        with torch.no_grad():
            runner.run(*inputs)
        return {node: runner.kept[node.name] for node in nodes}


@lru_cache(maxsize=16)
def executed(name: str, layers: int) -> Run:
    """A model is run once for all tests that look at it."""
    return Run(name, layers)


def same(value: Tensor, others: list[Tensor]) -> bool:
    """True for one of ``others``, or two of them as one: layers may take a joint stream apart and put it together."""
    pairs = [
        torch.cat(pair, 1)
        for pair in itertools.permutations(others, 2)
        if all(item.dim() == value.dim() == 3 and item.shape[::2] == value.shape[::2] for item in pair)
    ]
    return any(
        value.shape == other.shape and torch.allclose(value, other, rtol=1e-4, atol=1e-5) for other in (*others, *pairs)
    )


def program(block: Block) -> GraphModule:
    """The block on its own, from its inputs to its outputs."""
    graph = Graph()
    image = {node: graph.placeholder(node.name) for node in block.inputs}
    for node in sorted(block.interior):
        image[node] = graph.node_copy(node, image.__getitem__)
    graph.output(tuple(image[node] for node in block.outputs))
    owner = next(iter(block.interior)).graph.owning_module
    assert owner is not None
    return GraphModule(owner, graph)


# name: (layers, {module list: (first layer, one past the last layer) of the stack found there}, kinds of each block)
MODELS: dict[str, tuple[int, dict[str, tuple[int, int]], list[int]]] = {
    "llama-sdpa": (3, {"model.layers": (0, 3)}, [0, 0, 0]),
    "gpt2": (2, {"transformer.h": (0, 2)}, [0, 0]),
    "bert": (2, {"encoder.layer": (0, 2)}, [0, 0]),
    "vit": (3, {"layers": (0, 3)}, [0, 0, 0]),
    "t5": (3, {"encoder.block": (0, 3), "decoder.block": (0, 3)}, [0, 0, 0]),
    "dit": (3, {"transformer_blocks": (0, 3)}, [0, 0, 0]),
    "pixart": (2, {"transformer_blocks": (0, 2)}, [0, 0]),
    "flux": (3, {"transformer_blocks": (0, 3), "single_transformer_blocks": (0, 3)}, [0, 0, 0]),
    # The first layer has a second attention, the last one leaves the text out.
    "sd3": (5, {"transformer_blocks": (0, 5)}, [0, 1, 1, 1, 2]),
    "gptj": (3, {"h": (0, 3)}, [0, 0, 0]),
    "gemma3": (4, {"layers": (0, 4)}, [0, 0, 0, 0]),
    # Plain windows and shifted ones take turns.
    "swin": (4, {"encoder.layers.0.blocks": (0, 2), "encoder.layers.1.blocks": (0, 4)}, [0, 1, 0, 1]),
    "jamba": (8, {"layers": (0, 8)}, [0, 0, 1, 0, 0, 0, 1, 0]),
    "convnext_stages": (
        3,
        {f"stages.{index}.blocks": (0, length) for index, length in enumerate((2, 3, 3, 2))},
        [0, 0, 0],
    ),
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_blocks_are_the_layers_that_eager_execution_ran(name: str) -> None:
    layers, expected, kinds = MODELS[name]
    run = executed(name, layers)
    stacks = run.stacks()
    assert len(stacks) == len(expected)
    edges = {node for block in run.blocks for node in (*block.entries, *block.exits)}
    values = run.values(edges)
    for blocks, (home, (first, last)) in zip(stacks, expected.items(), strict=True):
        ran = run.executed[home][first:last]
        assert len(ran) == last - first == len(blocks), (home, len(blocks))
        assert [block.variant for block in blocks] == kinds[: len(blocks)]
        assert len({block.fingerprint for block in blocks}) == len({block.variant for block in blocks})
        assert [block.index for block in blocks] == list(range(len(blocks)))
        for number, block in enumerate(blocks):
            assert block.period == 1
            assert all(same(values[node], ran[number].reads) for node in block.entries), (home, number)
            assert all(same(values[node], ran[number].returns) for node in block.exits), (home, number)
            assert str(block.module).startswith(home)
            assert proof.prove(block, run.graph) is None
        for one, other in zip(blocks, blocks[1:], strict=False):
            # What goes on is what comes in next; a joint stream may be taken apart and put together in between.
            assert all(
                torch.equal(values[mine], values[node]) for mine, node in zip(one.exits, other.entries, strict=True)
            )
            assert one.interior.isdisjoint(other.interior)
            assert len(one.parts) and (one.parts == other.parts or one.variant != other.variant)


@pytest.mark.parametrize("name", ["llama-sdpa", "flux", "sd3", "swin", "jamba"])
def test_equal_blocks_are_interchangeable_programs(name: str) -> None:
    """The program of one block, on the inputs and weights of another of its kind, gives the other's outputs."""
    run = executed(name, MODELS[name][0])
    wanted = {node for block in run.blocks for node in (*block.inputs, *block.outputs)}
    values = run.values(wanted)
    for blocks in run.stacks():
        for one in (blocks[0], blocks[-1]):
            extracted = program(one)
            for other in (block for block in blocks if block.variant == one.variant):
                with torch.no_grad():
                    made = extracted(*(values[node] for node in other.inputs))
                for got, node in zip(made, other.outputs, strict=True):
                    assert torch.allclose(got, values[node], rtol=1e-4, atol=1e-5), (one.id, other.id)


def test_a_unet_has_skips_from_the_outside_in_and_blocks_within_its_levels() -> None:
    run = Run("unet", 3)
    down = run.executed["down_blocks.0.resnets"] + run.executed["down_blocks.1.resnets"]
    skips = list(run.sites.of(Skip))
    # The first convolution, each layer on the way down and the one downsampler: as many as the way up reads.
    ups = run.executed["up_blocks.0.resnets"] + run.executed["up_blocks.1.resnets"]
    assert len(skips) == len(ups) == len(down) + 2
    assert [skip.index for skip in skips] == list(range(len(skips)))
    assert {(skip.axis, skip.operand) for skip in skips} == {(1, 1)}
    assert all(proof.prove(skip, run.graph) is None for skip in skips)
    read = run.values({skip.consumer for skip in skips} | {skip.producer for skip in skips})
    for skip, up in zip(skips, reversed(ups), strict=True):
        assert same(read[skip.consumer], up.reads[:1])
        assert torch.equal(read[skip.consumer][:, -read[skip.producer].shape[1] :], read[skip.producer])
    inner = [home for home in run.executed if home.endswith((".resnets", ".attentions"))]
    made = [layer.returns for home in inner for layer in run.executed[home]]
    exits = run.values({node for block in run.blocks for node in block.exits})
    assert all(any(same(value, returned) for returned in made) for value in exits.values())
    homes = [{str(block.module).split(".")[0] for block in blocks} for blocks in run.stacks()]
    assert {"down_blocks"} in homes and {"up_blocks"} in homes
    # Level 0 of the way down: all its layers are equal. Of the way up: all but the first, which reads more channels.
    assert any(len(blocks) == 3 and blocks[0].module == "down_blocks.0.resnets.0" for blocks in run.stacks())
    assert any(len(blocks) == 3 and str(blocks[0].module).startswith("up_blocks.1") for blocks in run.stacks())


def test_residual_sums_are_no_skips() -> None:
    for name in ("llama-sdpa", "flux", "convnext_stages"):
        assert Run(name, 2).sites.of(Skip) == []
