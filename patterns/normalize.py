"""Retrace Dynamo's graph to the normal form: pre-dispatch ATen, where every spelling of an operation is one operator.

Pre-dispatch is the level between too many spellings (Dynamo's torch calls and methods) and too many pieces (the
decomposed graphs of AOTAutograd): ``linear``, ``matmul``, ``softmax`` and ``scaled_dot_product_attention`` are single
nodes, autograd has not run, and module paths, stack traces and annotations survive.

Private torch modules are touched here on purpose; docs/private_torch.md lists them with the versions checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch._dynamo.source import ConstantSource
from torch._guards import TracingContext, detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental import _config as symbolic_config
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.traceback import preserve_node_meta
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .by_example import without_examples
from .functional import without_writes
from .graph import NormalGraph
from .nodes import drop_unchanged, drop_unread_items
from .reasons import Reason
from .replay import ReplayingInterpreter

# What Dynamo and AOTAutograd read from a placeholder; everything else is recomputed by the retrace.
_PLACEHOLDER_META = ("tensor_dict", "grapharg", "_dynamo_source", "specialization")


def normalize(module: GraphModule, inputs: Sequence[Any]) -> NormalGraph | Reason:
    """The normal form of ``module``, or a ``not-normalised`` reason.

    ``inputs`` are what the backend receives from Dynamo: real tensors (or fakes) and SymInts, by position. A size that
    an operator asks about while it is retraced is guarded by Dynamo, as when AOTAutograd traces it. Dynamo's own
    control flow (``TorchDynamoException``, restart requests of the shape environment) is never caught.
    """
    if any(isinstance(value, torch.Tensor) and is_traceable_wrapper_subclass(value) for value in inputs):
        return Reason("not-normalised", "an input is a tensor subclass (DTensor, quantised tensor, ...)")
    fake_mode = _fake_mode(inputs)
    try:
        fakes = [_fake(value, fake_mode) for value in inputs]
        with (
            fake_mode,
            preserve_node_meta(),
            mock.patch.object(fake_mode, "allow_non_fake_inputs", True),
            mock.patch.object(symbolic_config, "backed_size_oblivious", _any_may_be_small(inputs)),
        ):
            # A module whose nodes already carry another fake mode's values must not be asked to reuse them.
            retraced = make_fx(ReplayingInterpreter(module, fake_mode).run, pre_dispatch=True, tracing_mode="real")(
                *fakes
            )
    except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.TensorifyScalarRestartAnalysis):
        raise
    except Exception as error:
        message = str(error).strip().splitlines()
        return Reason("not-normalised", f"{type(error).__name__}: {message[0] if message else 'no message'}")
    lost = [node.name for node in retraced.graph.find_nodes(op="get_attr") if _is_fake_attribute(retraced, node.target)]
    if lost:
        # A value the tracer did not know (a wrapper of some transform) was recorded as a constant: not the same graph.
        return Reason("not-normalised", "the retrace lost track of a computed value", tuple(lost))
    drop_unread_items(retraced.graph)
    _carry_over(module, retraced, fakes)
    drop_unchanged(retraced.graph)
    if without_examples(retraced.graph):
        retraced.recompile()
    _forget_writes(retraced, fake_mode)
    # What an expanded operator computes and nobody reads (weights that a layer could have returned) hides nothing.
    retraced.graph.eliminate_dead_code()
    retraced.recompile()
    return NormalGraph(retraced, module, fake_mode, torch.is_grad_enabled())


def _any_may_be_small(inputs: Sequence[Any]) -> bool:
    """True when a size that comes in (the load of an expert) may be 0 or 1.

    Whether a value of that size is contiguous must then not depend on its having one element or none: that would be a
    guard for each size.
    """
    return any(isinstance(value, torch.SymInt) and not statically_known_true(value >= 2) for value in inputs)


def _forget_writes(module: GraphModule, fake_mode: FakeTensorMode) -> None:
    def run(target: Any, args: Any, kwargs: Any) -> Any:
        with fake_mode, torch.no_grad():
            return target(*args, **kwargs)

    if without_writes(module.graph, run, torch.is_grad_enabled()):
        module.recompile()


def _fake_mode(inputs: Sequence[Any]) -> FakeTensorMode:
    context = TracingContext.try_get()
    if context is not None and context.fake_mode is not None:
        return context.fake_mode
    return detect_fake_mode(list(inputs)) or FakeTensorMode(allow_non_fake_inputs=True)


def _fake(value: Any, fake_mode: FakeTensorMode) -> Any:
    """A fresh fake of one input with the symbolic sizes Dynamo already chose for it. SymInts stay as they are."""
    if not isinstance(value, torch.Tensor):
        return value
    if isinstance(value, FakeTensor) and value.fake_mode is fake_mode:
        return value
    context = TracingContext.try_get()
    symbolic = context.tensor_to_context.get(value) if context is not None else None
    if symbolic is None:
        return fake_mode.from_tensor(value, static_shapes=fake_mode.shape_env is None)
    return fake_mode.from_tensor(value, symbolic_context=symbolic, source=symbolic.tensor_source, trace=False)


def _is_fake_attribute(module: GraphModule, target: Any) -> bool:
    return isinstance(getattr(module, str(target), None), FakeTensor)


def _carry_over(source: GraphModule, target: GraphModule, fakes: Sequence[Any]) -> None:
    for old, new, fake in zip(
        source.graph.find_nodes(op="placeholder"), target.graph.find_nodes(op="placeholder"), fakes, strict=True
    ):
        for key in _PLACEHOLDER_META:
            if key in old.meta:
                new.meta[key] = old.meta[key]
        new.meta.setdefault("val", fake)
        if isinstance(fake, torch.Tensor) and fake.requires_grad:
            # The tracer records detached values; which inputs need a gradient must stay visible to the passes.
            new.meta["val"] = fake
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
        new.meta["laconic.name"] = old.name
    target.meta.update({k: v for k, v in source.meta.items() if k not in target.meta})
    if hasattr(source, "_source_to_user_stacks"):
        target._source_to_user_stacks = source._source_to_user_stacks
    if hasattr(source, "_param_name_to_source"):
        # AOTAutograd wants a source for every tensor the module holds; constants met by the retrace have none.
        held = [name for name, _ in (*target.named_parameters(), *target.named_buffers())]
        recorded: Any = source._param_name_to_source
        known: dict[str, Any] = dict(recorded)
        kept: Any = {name: known.get(name, ConstantSource(f"laconic_{name}")) for name in held}
        target._param_name_to_source = kept
