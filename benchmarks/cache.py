"""What caching across steps costs and buys: ``python benchmarks/cache.py PART [--setup NAME]``.

``curve``: for every policy and setting the share of the FLOPs and the distance to uncached samples, beside plain fewer
steps with the same solver and the caches of other libraries. Pieces run eagerly and are counted. Tables, coefficients
and, for each budget, the policy and its settings are chosen on calibration seeds; errors are those on evaluation seeds
that nothing was chosen on. Peers are given their best setting on the evaluation seeds.
``time``: wall-clock of whole trajectories through Inductor, in turns, beside what the FLOPs predict.
``peers-time``: the same for the other libraries, compiled, each in a process of its own.
``overhead``: what a policy costs that never reuses anything.
``train``: train HarmoniCa routers on the calibration seeds and store their tables.

Each part is written to its place in ``benchmarks/results/cache.json``; a curve that was stopped goes on where it was.
The other libraries (diffusers, cache-dit) are optional.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cache_peers
import timing
import torch
from cache_setups import CALIBRATION, EVALUATION, SETUPS, GuidedDigits, Setup, counted, digits
from cache_timing import clocked, in_turns, measure, timed
from torch import Tensor

import laconic
from laconic.backends import runner

RESULTS = Path(__file__).resolve().parent / "results"
TABLES = RESULTS / "harmonica.json"
BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
REPAY = (0.0, 0.5)
FEW = ("taylor", "static")
"""Policies that are run where each row of a curve takes long."""
RATE = 0.15
"""Of the routers' optimiser: the paper's 0.01 is for 20 000 iterations. They begin with every second step."""


def settings(setup: Setup) -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """Every policy with the settings its curve is drawn from: a name, the policy, and what gives its settings."""
    if isinstance(setup.model, GuidedDigits):
        yield from guided_settings(setup)
    for threshold in (0.01, 0.015, 0.02, 0.03, 0.05):
        for order in (None, 1):
            yield _named("easycache", threshold=threshold, order=order)
    for interval in (2, 3, 4):
        for repay in REPAY:
            yield _named("taylor", interval=interval, repay=repay)
        yield _named("taylor", interval=interval, order=2)
        yield _named("taylor", interval=interval, level="blocks")
        yield _named("taylor", interval=interval, level="layers")
        yield _named("taylor", interval=interval, level="layers", warmup=3)
    yield _named("taylor", interval=2, level="layers", warmup=2)
    for first, behind in ((0, 0), (0.83, 0.97), (0.3, 0.63), (0.43, 0.97)):
        name = f"static every second step, all from {first:.0%} to {behind:.0%}, level=layers, order=1"
        yield name, "static", functools.partial(windowed, setup.steps, first, behind)
    for threshold in (0.05, 0.1, 0.2, 0.3):
        for order in (0, 1):
            yield _named("first-block", threshold=threshold, order=order)
    for interval in (2, 3):
        for blocks in (4, 6, 8):
            yield _named("delta-dit", interval=interval, blocks=blocks)
    for interval in (1, 2, 4):
        yield _named("sada", max_interval=interval, period=interval + 1)
    recorded = functools.cache(lambda: setup.outputs(CALIBRATION))

    def searched(count: int, repay: float) -> dict[str, Any]:
        table = laconic.search_table(recorded(), count, order=1, repay=repay)
        return {"table": table, "order": 1, "repay": repay}

    for share in (0.28, 0.3, 0.36, 0.4, 0.44, 0.5, 0.6, 0.7, 0.8):
        count = round(share * setup.steps)
        for repay in REPAY:
            name = f"static table=searched, {count} of {setup.steps} computed, order=1, repay={repay}"
            yield name, "static", functools.partial(searched, count, repay)
    # What the routers begin with.
    yield _named("taylor", interval=2, level="layers", order=0)
    for router in _trained(setup):
        order, table = router["order"], router["table"]
        name = f"static table=trained router, cost {router['cost']}, order={order}"
        yield name, "static", functools.partial(dict, table=table, order=order)


def windowed(steps: int, first: float, behind: float) -> dict[str, Any]:
    """Every second step, the first three, and all in a part of the trajectory."""
    window = range(round(first * steps), round(behind * steps))
    table = [step < 3 or step % 2 == 0 or step in window for step in range(steps)]
    return {"table": table, "level": "layers", "order": 1}


def guided_settings(setup: Setup) -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """The policies that need guidance in the graph; coefficients are fitted on the calibration seeds."""
    for threshold in (0.9, 0.95, 0.98, 0.99, 0.995):
        yield _named("adaptive-guidance", threshold=threshold)
    recorded = functools.cache(lambda: _halves(setup))

    def fitted(history: int, to_the_end: bool) -> dict[str, Any]:
        parts = recorded()
        if to_the_end:  # all steps as if they were the first half
            parts = [torch.cat([part, part]) for part in parts]
        return {"coefficients": laconic.fit_guidance(*parts, history=history)[: setup.steps]}

    for history in (1, 2):
        for to_the_end in (False, True):
            name = f"linear-ag history={history}" + ", every other step guided to the end" * to_the_end
            yield name, "linear-ag", functools.partial(fitted, history, to_the_end)


def _halves(setup: Setup) -> list[Tensor]:
    """Conditional and unconditional outputs ``[steps, samples, ...]`` along guided trajectories."""
    halves: list[tuple[Tensor, Tensor]] = []
    model = setup.model
    assert isinstance(model, GuidedDigits)

    def keeping(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        halves.append(model.halves(x, t, label))
        u, c = halves[-1]
        return u + model.strength * (c - u)

    found = []
    for seed in CALIBRATION:
        halves.clear()
        setup.draw(keeping, seed, setup.steps)
        found.append([torch.stack(part) for part in zip(*halves, strict=True)])
    unconditional, conditional = (torch.cat(part, 1) for part in zip(*found, strict=True))
    return [conditional, unconditional]


def _named(policy: str, **chosen: Any) -> tuple[str, str, Callable[[], dict[str, Any]]]:
    name = f"{policy} " + ", ".join(f"{key}={value}" for key, value in chosen.items())
    return name, policy, functools.partial(dict, **chosen)


def _trained(setup: Setup) -> list[dict[str, Any]]:
    known = json.loads(TABLES.read_text()) if TABLES.exists() else {}
    return list(known.get(setup.name, {}).get("routers", []))


def compiled(model: Any, policy: str, chosen: Mapping[str, Any]) -> Any:
    return torch.compile(model, backend="laconic", options={"passes": [laconic.cache(policy, **chosen)]})


@contextmanager
def counted_pieces() -> Iterator[list[int]]:
    """Pieces run as they are; the list gets the FLOPs of each that runs."""
    run: list[int] = []

    def compile_graph(module: torch.fx.GraphModule, inputs: Any, options: Any) -> Callable[..., Any]:
        cost: list[int] = []

        def piece(*args: Any) -> Any:
            if cost:
                result = module(*args)
            else:
                result, flops = counted(lambda: module(*args))
                cost.append(flops)
            run.append(cost[0])
            return result

        return piece

    before = runner.compile_graph
    runner.compile_graph = compile_graph
    try:
        yield run
    finally:
        runner.compile_graph = before


def distance(images: Tensor, reference: Tensor) -> float:
    """Relative L2."""
    return float((images - reference).norm() / reference.norm())


def row(kind: str, name: str, flops: float, images: Tensor, reference: Tensor, **more: Any) -> dict[str, Any]:
    error = distance(images, reference)
    # Samples lie about in [-1, 1], so the peak is 2.
    noise = float((images - reference).square().mean().sqrt())
    psnr = 20 * math.log10(2 / noise) if noise else math.inf
    print(f"  {kind:<12} {name:<68} {flops:6.3f}  {error:.5f}  {psnr:5.1f} dB", flush=True)
    return {"kind": kind, "name": name, "flops": flops, "relative_l2": error, "psnr": psnr, **more}


def curve(setup: Setup, known: list[dict[str, Any]], keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Rows ``kind`` (laconic, fewer steps, peer), ``name``, ``flops`` (share), ``relative_l2``, and at each budget.

    Rows in ``known`` are not measured again; ``keep`` gets everything there is after each row.
    """
    full = setup.flops()
    calibration, reference = (setup.samples(setup.model, seeds) for seeds in (CALIBRATION, EVALUATION))
    rows = list(known)
    done = {item["name"] for item in known}

    def figures() -> dict[str, Any]:
        return {
            "setup": setup.name,
            "calibration_seeds": CALIBRATION,
            "evaluation_seeds": EVALUATION,
            "machine": timing.machine(),
            "rows": rows,
        }

    for share in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        steps = round(share * setup.steps)
        if f"{steps} steps" not in done:
            images = setup.samples(setup.model, EVALUATION, steps)
            rows.append(row("fewer steps", f"{steps} steps", steps / setup.steps, images, reference))
    for name, policy, chosen in settings(setup):
        if name not in done and not (setup.few and policy not in FEW):
            (images, share), (chosen_on, chosen_share) = cached(setup, policy, chosen(), full)
            by = {"flops": chosen_share, "relative_l2": distance(chosen_on, calibration)}
            rows.append(row("laconic", name, share, images, reference, policy=policy, calibration=by))
            keep(figures())
    for choice in cache_peers.choices(setup):
        # None of the peers knows of guidance in a graph.
        if choice.name not in done and not isinstance(setup.model, GuidedDigits) and (choice.few or not setup.few):
            rows.append(peer_row(setup, choice, reference, full))
            keep(figures())
    return {**figures(), "budgets": at_budgets(rows, setup.steps)}


def cached(setup: Setup, policy: str, chosen: Mapping[str, Any], full: int) -> list[tuple[Tensor, float]]:
    """Samples and the share of the FLOPs, on the evaluation and on the calibration seeds."""
    torch._dynamo.reset()
    results = []
    with counted_pieces() as run:
        fast = compiled(setup.model, policy, chosen)
        for seeds in (EVALUATION, CALIBRATION):
            run.clear()
            found = []
            for seed in seeds:
                with laconic.session(fast, steps=setup.steps):
                    found.append(setup.draw(fast, seed, setup.steps))
            results.append((torch.cat(found), sum(run) / full / len(seeds)))
    return results


def peer_row(setup: Setup, choice: cache_peers.Choice, reference: Tensor, full: int) -> dict[str, Any]:
    """Another library's cache, eagerly; that it fails is a row too."""
    torch.manual_seed(0)
    try:
        peer = choice.make(setup)
        found, flops = [], 0
        for seed in EVALUATION:
            peer.reset()
            images, more = counted(lambda: setup.draw(peer.model, seed, setup.steps))  # noqa: B023
            found.append(images)
            flops += more
        return row("peer", choice.name, flops / full / len(EVALUATION), torch.cat(found), reference)
    except Exception as error:  # a peer's failure is a result
        text = f"{type(error).__name__}: {error}".split("\n")[0][:160]
        print(f"  peer         {choice.name} failed: {text}", flush=True)
        return {"kind": "peer", "name": choice.name, "failed": text}


def at_budgets(rows: list[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    """At each share of the FLOPs: laconic's choice on the calibration seeds, the others' best on the evaluation seeds.

    ``best policies`` has, for each policy, its choice in the same way.
    """
    print("  settings chosen on the calibration seeds; peers and fewer steps have their best on the evaluation seeds")
    found = []
    for budget in BUDGETS:
        # Half a step of slack: budgets fall between numbers of steps.
        limit = budget + 0.5 / steps

        def best(candidates: list[dict[str, Any]], key: str | None, limit: float = limit) -> dict[str, Any] | None:
            within = [item for item in candidates if (item[key] if key else item).get("flops", 2) <= limit]
            chosen = min(within, key=lambda item: (item[key] if key else item)["relative_l2"], default=None)
            return {name: chosen[name] for name in ("name", "flops", "relative_l2")} if chosen else None

        own = [item for item in rows if item["kind"] == "laconic"]
        line: dict[str, Any] = {"budget": budget, "laconic": best(own, "calibration")}
        for kind in ("fewer steps", "peer"):
            line[kind] = best([item for item in rows if item["kind"] == kind], None)
        policies = sorted({item["policy"] for item in own})
        line["best policies"] = {
            name: best([item for item in own if item["policy"] == name], "calibration") for name in policies
        }
        found.append(line)
        texts = [f"{kind} {line[kind]['relative_l2']:.5f}" for kind in ("laconic", "fewer steps", "peer") if line[kind]]
        print(f"  at {budget:.0%} of the FLOPs: {'   '.join(texts)}   ({(line['laconic'] or {}).get('name')})")
    return found


def overhead(setup: Setup, rounds: int) -> dict[str, Any]:
    """Time of three calls relative to the unsplit compile, in turns; the median of the ratios within a round."""
    off: dict[str, tuple[str, dict[str, Any]]] = {
        "easycache, threshold 0": ("easycache", {"threshold": 0}),
        "first-block, threshold 0": ("first-block", {"threshold": 0}),
        "taylor at every layer, interval 1": ("taylor", {"level": "layers", "interval": 1}),
        # Every call is decided and recorded, and computed: the controller's own cost.
        "easycache, deciding and never reusing": ("easycache", {"threshold": 1e-12}),
        "first-block, deciding and never reusing": ("first-block", {"threshold": 1e-12}),
    }
    fast = {name: compiled(setup.model, *choice) for name, choice in off.items()}
    variants = {"unsplit compile": torch.compile(setup.model), **fast}
    figures: dict[str, Any] = {}
    # One draw to compare, two that do not count, and the rounds.
    with laconic.session(*fast.values(), steps=3 * (rounds + 3)), torch.no_grad():
        ends = {name: setup.draw(network, 0, 3) for name, network in variants.items()}
        runs = {name: clocked(lambda v=value: setup.draw(v, 0, 3)) for name, value in variants.items()}
        seconds = in_turns(runs, rounds)
    for name in variants:
        figures[name] = timed(name, seconds, 1.0, "unsplit compile")
        figures[name]["relative_l2_to_unsplit"] = distance(ends[name], ends["unsplit compile"])
    return figures


def train(setup: Setup, costs: list[float], iterations: int, order: int) -> None:
    """Tables of HarmoniCa routers for the digits transformer, by cost; two samples of each calibration seed."""
    setup = digits(setup.steps, batch=2)
    begin_with = laconic.interval_table(setup.steps, 2)

    def sampler(network: Any, iteration: int) -> Tensor:
        return setup.draw(network, CALIBRATION[iteration % len(CALIBRATION)], setup.steps)

    for cost in costs:
        begin = time.perf_counter()
        torch._dynamo.reset()
        chosen = {"iterations": iterations, "cost": cost, "order": order, "rate": RATE}
        router = laconic.train_router(
            setup.model, sampler, steps=setup.steps, start=begin_with, reweigh=iterations, **chosen
        )
        table = [[int(value) for value in line] for line in router.table()]
        computed = sum(map(sum, table)) / sum(map(len, table))
        seconds = time.perf_counter() - begin
        print(f"  cost {cost}, order {order}: {computed:.3f} of the layers computed, {seconds:.0f} s", flush=True)
        known = json.loads(TABLES.read_text()) if TABLES.exists() else {}
        mine = known.setdefault(setup.name, {"start": "interval 2", "seeds": CALIBRATION, "routers": []})
        mine["routers"] = [item for item in mine["routers"] if (item["cost"], item["order"]) != (cost, order)]
        mine["routers"].append({**chosen, "computed": computed, "seconds": round(seconds), "table": table})
        TABLES.write_text(json.dumps(known) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("curve", "time", "peers-time", "overhead", "train"))
    parser.add_argument("--setup", choices=list(SETUPS), default="digits")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--costs", nargs="*", type=float, default=[0.0003, 0.003], help="of the routers to train")
    parser.add_argument("--order", type=int, default=0, help="of the forecasts the routers are trained with")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--peers", nargs="*", default=[""], help="parts of the names of peers to time")
    parser.add_argument("--afresh", action="store_true", help="measure rows again that are there already")
    parser.add_argument("--out", type=Path, default=RESULTS / "cache.json")
    arguments = parser.parse_args()
    if arguments.rounds < 7:
        parser.error("at least 7 rounds")
    setup = SETUPS[arguments.setup]()
    print(f"{setup.name}: {arguments.part}")
    if arguments.part == "train":
        train(setup, arguments.costs, arguments.iterations, arguments.order)
        return
    known = json.loads(arguments.out.read_text())["figures"] if arguments.out.exists() else {}
    mine = known.setdefault(arguments.setup, {})

    def keep(figures: dict[str, Any]) -> None:
        mine[arguments.part] = figures
        timing.save(str(arguments.out), "cache", known)

    before = mine.get(arguments.part, {}).get("rows", {}) if not arguments.afresh else {}
    if arguments.part == "curve":
        keep(curve(setup, list(before), keep))
        return
    if arguments.part == "overhead":
        rows = overhead(setup, arguments.rounds)
    elif arguments.part == "time":
        rows = measure(arguments.setup, arguments.rounds)
    else:
        named = [choice.name for choice in cache_peers.choices(setup) if choice.timed]
        named = [name for name in named if any(part in name for part in arguments.peers)]
        rows = {**before, **measure(arguments.setup, arguments.rounds, named)}
    keep({"setup": setup.name, "rounds": arguments.rounds, "machine": timing.machine(), "rows": rows})


if __name__ == "__main__":
    main()
