"""Wall-clock of cached trajectories, for ``benchmarks/cache.py``: each library in a process of its own, in turns.

Libraries must not share a process here. Dynamo keeps what it knows of a forward by its code object, which all models
of a class have in common: a peer whose graph breaks inside a loop makes Dynamo pass over that code for good. Everybody
else's compiled model of the class, the uncached one too, then runs as Python around small graphs (measured on the
digits transformer: the network's forward uncompiled and each block a graph, 1 ms more per call, whether it is reused
or not).

So the uncached compile and laconic have one process, every peer another one. They run one at a time, and each round
has all of them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cache_peers
import torch
from cache_setups import CALIBRATION, SETUPS, Setup, counted

import laconic

BASE = "torch.compile"


@dataclass(frozen=True)
class Variant:
    """A trajectory to be timed, its share of the FLOPs, and what else is known of it."""

    run: Callable[[], Any]
    flops: float
    facts: Mapping[str, Any]


def own_variants(setup: Setup, few: bool) -> Iterator[tuple[str, Variant]]:
    """The uncached compile, laconic's policies and plain fewer steps; ``few``: one policy alone."""
    steps = setup.steps
    plain = torch.compile(setup.model)
    yield BASE, Variant(lambda: setup.draw(plain, 0, steps), 1.0, {})

    def cached(policy: str, chosen: Mapping[str, Any], share: float) -> Variant:
        passes = [laconic.cache(policy, **chosen)]
        fast = torch.compile(setup.model, backend="laconic", options={"passes": passes})

        def run() -> None:
            with laconic.session(fast, steps=steps):
                setup.draw(fast, 0, steps)

        return Variant(run, share, {})

    for interval in (2,) if few else (2, 3, 4):
        count = sum(step % interval == 0 or step == steps - 1 for step in range(steps))
        yield (
            f"laconic taylor interval={interval}",
            cached("taylor", {"interval": interval, "repay": 0.5}, count / steps),
        )
    if not few:
        table = laconic.search_table(setup.outputs(CALIBRATION), steps // 2, order=1)
        yield "laconic static, searched", cached("static", {"table": table, "order": 1}, 0.5)
        yield "fewer steps", Variant(lambda: setup.draw(plain, 0, steps // 2), 0.5, {})


def peer_variant(setup: Setup, name: str) -> Variant:
    """Another library's cache, compiled, at the setting called ``name``."""
    from torch._dynamo.utils import counters

    (choice,) = [choice for choice in cache_peers.choices(setup) if choice.name == name]
    peer = choice.make(setup)
    peer.reset()
    share = counted(lambda: setup.draw(peer.model, 0, setup.steps))[1] / setup.flops()
    counters.clear()
    network = torch.compile(peer.model)

    def run() -> None:
        peer.reset()
        setup.draw(network, 0, setup.steps)

    run(), run()
    facts = {"graph_breaks": sum(counters["graph_break"].values()), "graphs": counters["stats"]["unique_graphs"]}
    return Variant(run, share, facts)


def _serve(connection: Any, setup_name: str, peer: str | None, few: bool) -> None:
    """In its own process: make the variants, say which there are, run the one that is asked for."""
    setup = SETUPS[setup_name]()
    try:
        with torch.no_grad():
            variants = dict([(peer, peer_variant(setup, peer))] if peer else own_variants(setup, few))
        connection.send({name: (variant.flops, dict(variant.facts)) for name, variant in variants.items()})
    except Exception as error:  # a peer's failure is a result
        connection.send(f"{type(error).__name__}: {error}".split("\n")[0][:160])
        return
    with torch.no_grad():
        while (name := connection.recv()) is not None:
            faults, begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            variants[name].run()
            seconds = time.perf_counter() - begin
            connection.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults))


@contextlib.contextmanager
def _process(setup_name: str, peer: str | None, few: bool) -> Iterator[Any]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(there, setup_name, peer, few), daemon=True
    )
    process.start()
    there.close()
    try:
        yield here
        here.send(None)
    except (BrokenPipeError, EOFError):
        pass
    finally:
        process.join(10)
        process.kill()


def measure(setup_name: str, rounds: int, peers: Sequence[str] | None = None) -> dict[str, Any]:
    """A row for each variant: ``time`` relative to the uncached compile's, beside ``flops``; peers named if any.

    ``page_faults`` are those of one trajectory: memory taken anew from the operating system.
    """
    rows: dict[str, dict[str, Any]] = {}
    runs: dict[str, Callable[[], tuple[float, int]]] = {}
    with contextlib.ExitStack() as stack:
        for peer in (None, *(peers or ())):
            connection = stack.enter_context(_process(setup_name, peer, peers is not None))
            made = connection.recv()
            if isinstance(made, str):
                print(f"  {peer} failed: {made}", flush=True)
                rows[peer or BASE] = {"failed": made}
                continue
            for name, (share, facts) in made.items():
                rows[name] = {"flops": share, **facts}

                def run(name: str = name, connection: Any = connection) -> tuple[float, int]:
                    connection.send(name)
                    answer: tuple[float, int] = connection.recv()
                    return answer

                runs[name] = run
        found = in_turns(runs, rounds)
    seconds = {name: [value for value, _ in values] for name, values in found.items()}
    for name, values in found.items():
        rows[name] |= timed(name, seconds, rows[name]["flops"])
        rows[name]["page_faults"] = int(statistics.median(faults for _, faults in values))
    return rows


def in_turns(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """What each returns, by round, after two rounds that do not count."""
    results: dict[str, list[Any]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(-2, rounds):
        # The order turns, so that no variant always runs with another's leftovers in the cache.
        start = turn % len(names)
        for name in (*names[start:], *names[:start]):
            result = runs[name]()
            if turn >= 0:
                results[name].append(result)
    return results


def timed(name: str, seconds: Mapping[str, list[float]], share: float, base: str = BASE) -> dict[str, Any]:
    """The median over rounds of the time relative to the base's in the same round."""
    pairs = zip(seconds[name], seconds[base], strict=True)
    ratio = statistics.median(mine / other for mine, other in pairs)
    print(f"  {name:<44} FLOPs {share:.3f}   time {ratio:.3f}   time / FLOPs {ratio / share:.3f}", flush=True)
    milliseconds = 1000 * statistics.median(seconds[name])
    return {"flops": share, "time": ratio, "time_over_flops": ratio / share, "milliseconds": milliseconds}


def clocked(run: Callable[[], Any]) -> Callable[[], float]:
    """``run`` as something that returns its seconds."""

    def clock() -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    return clock
