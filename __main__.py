"""``python -m laconic explain | bench | kernels | passes``."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. A mistake of the user's is one line on standard error."""
    parser = argparse.ArgumentParser(prog="laconic", description="The same model, said in fewer words.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("explain", "what laconic finds and would rewrite in a model"),
        ("bench", "time eager, torch.compile and laconic on a model, interleaved"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("target", help="FILE.py:FUNCTION or MODULE:FUNCTION returning (model, args[, kwargs])")
        command.add_argument("--passes", default="", help="comma-separated calls, e.g. \"quantize('int8'),scan()\"")
        if name == "bench":
            command.add_argument("--rounds", type=int, default=7)
        else:
            command.add_argument("--save", help="a folder for the report and the graphs")
            command.add_argument("--why", help="a module path or node: what came closest to a pattern there")
    commands.add_parser("kernels", help="compile every Triton kernel for every target and print its resources")
    commands.add_parser("passes", help="the passes, their policies and settings")
    options = parser.parse_args(arguments)
    try:
        return int(globals()[f"_{options.command}"](options) or 0)
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"laconic {options.command}: {error}", file=sys.stderr)
        return 2


def _explain(options: argparse.Namespace) -> None:
    from .backends.explain import explain

    model, args, kwargs = _load(options.target)
    report = explain(model, *args, passes=_parse_passes(options.passes), why=options.why, **kwargs)
    print(report)
    if options.save:
        print(f"saved to {report.save(options.save)}")


def _bench(options: argparse.Namespace) -> None:
    import os
    import statistics
    import time

    import torch

    from .backends.entry import Backend

    model, args, kwargs = _load(options.target)
    backend = Backend(passes=_parse_passes(options.passes))
    runs = {"eager": model, "torch.compile": torch.compile(model), "laconic": torch.compile(model, backend=backend)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for run in runs.values():
            run(*args, **kwargs)
        for _ in range(options.rounds):
            for name, run in runs.items():
                begin = time.perf_counter()
                run(*args, **kwargs)
                seconds[name].append(time.perf_counter() - begin)
    base = seconds["torch.compile"]
    for name, values in seconds.items():
        ratio = statistics.median(value / reference for value, reference in zip(values, base, strict=True))
        print(f"{name:<14} {statistics.median(values) * 1e3:9.2f} ms   {ratio:.3f} of torch.compile")
    print(f"load {os.getloadavg()[0]:.2f}, {options.rounds} rounds, interleaved, medians")


def _kernels(options: argparse.Namespace) -> None:
    from .backends.kernels import resources

    print(resources.table())


def _passes(options: argparse.Namespace) -> None:
    from .passes import DEFAULTS, ORDER
    from .passes.base import FACTORIES

    on = {item.name for item in DEFAULTS}
    for name in (*ORDER, *sorted(set(FACTORIES) - set(ORDER))):
        for policy, kind in FACTORIES[name].policies.items():
            settings = ", ".join(
                item.name if item.default is dataclasses.MISSING else f"{item.name}={item.default!r}"
                for item in dataclasses.fields(kind)
            )
            summary = (kind.__doc__ or "").strip().splitlines()[0]
            call = f"{name}({', '.join(filter(None, (repr(policy), settings)))})"
            print(f"{call}  {kind.fidelity.value}{', default' * (name in on)}")
            print(f"    {summary}")


def _parse_passes(text: str) -> list[Any]:
    import ast

    from .passes import disable
    from .passes.base import FACTORIES, nearest

    passes = []
    for call in ast.parse(f"[{text}]", mode="eval").body.elts:  # type: ignore[attr-defined]
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError(f"write passes as calls, not {ast.unparse(call)!r}")
        if call.func.id != "disable" and call.func.id not in FACTORIES:
            raise ValueError(f"unknown pass {call.func.id!r}; {nearest(call.func.id, FACTORIES)}")
        factory: Any = disable if call.func.id == "disable" else FACTORIES[call.func.id]
        values = [ast.literal_eval(value) for value in call.args]
        passes.append(factory(*values, **{str(k.arg): ast.literal_eval(k.value) for k in call.keywords}))
    return passes


def _load(target: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Import FILE.py:FUNCTION or MODULE:FUNCTION and call it."""
    place, _, function = target.rpartition(":")
    if not place:
        raise ValueError(f"{target!r} is not FILE.py:FUNCTION or MODULE:FUNCTION")
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None or not Path(place).exists():
            raise ValueError(f"no file {place!r}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    made = getattr(module, function, None)
    if made is None:
        raise ValueError(f"{place} has no function {function!r}")
    model, args, *rest = made()
    return model, tuple(args), dict(rest[0]) if rest else {}


if __name__ == "__main__":
    sys.exit(main())
