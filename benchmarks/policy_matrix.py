"""Every cache policy on every architecture through Inductor: ``python benchmarks/policy_matrix.py``.

    python benchmarks/policy_matrix.py [--architectures flux dit ...] [--policies taylor ...] [--steps 50]

Each pair is compiled with ``fullgraph=True`` and runs three trajectories back to back. Counted are graph breaks and
recompiles (by Dynamo), calls reused, and what could not be applied, by code. Compared bit by bit are the identity
setting with the same pieces outside a session, and the last trajectory with the same one alone on a model compiled
afresh. ``unsplit`` is the distance (relative L2) of the pieces, in one call and at the end of a trajectory, to
``torch.compile`` alone; ``cached`` that of the first cached trajectory to the uncached one (random weights: it says
nothing about a policy's quality).

Rows are added to ``benchmarks/results/policy-matrix.json``, so the matrix can be run in parts. The exit status is 1
if a row of the run fails. Models and settings are those of ``tests/models/policy_rows.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import timing
import torch
from torch._dynamo.utils import counters, get_compilation_metrics

import laconic
from laconic.passes.measure import relative_l2
from tests.models.policy_rows import ARCHITECTURES, POLICIES, Architecture, Row

OUT = Path(__file__).resolve().parent / "results" / "policy-matrix.json"


class Pair:
    """One architecture and one policy."""

    def __init__(self, architecture: Architecture, row: Row, steps: int, layers: int) -> None:
        self.architecture = architecture
        self.row = row
        self.steps = steps
        self.layers = layers

    def compiled(self, *, identity: bool = False) -> Any:
        """The model compiled afresh."""
        torch._dynamo.reset()
        passes = self.row.passes(self.steps, self.layers, identity=identity)
        return torch.compile(self.architecture.model, backend="laconic", options={"passes": passes}, fullgraph=True)

    def cached(self, fast: Any, *seeds: int) -> tuple[list[torch.Tensor], int]:
        """The ends of trajectories back to back, and how often something was reused in the last one."""
        session, ends = laconic.session(fast, steps=self.steps), []
        for seed in seeds:
            with session:
                ends.append(self.architecture.trajectory(fast, self.steps, seed))
        return ends, session.summary().reused

    def figures(self, unsplit: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Any]:
        """The pair's row of the matrix; ``unsplit`` is one step and a whole trajectory of ``torch.compile`` alone."""
        begin = time.perf_counter()
        counters.clear()
        known = len(get_compilation_metrics())
        fast = self.compiled()
        # Outside a session the pieces run without a policy.
        one, plain = (self.architecture.trajectory(fast, steps) for steps in (1, self.steps))
        ends, reused = self.cached(fast, 0, 1, 2)
        metrics = get_compilation_metrics()[known:]
        report = laconic.report(fast)
        found: dict[str, Any] = {
            "regions": sum(row.op == "reuse across steps" for row in report.rewrites),
            "pieces": [list(graph.pieces) for graph in report.graphs],
            "graph_breaks": sum(counters["graph_break"].values()),
            "recompiles": sum(item.recompile_reason is not None for item in metrics),
            "frames_compiled": len(metrics),
            "reused": reused,
            "unsplit_call": relative_l2(one, unsplit[0]),
            "unsplit_trajectory": relative_l2(plain, unsplit[1]),
            "cached": relative_l2(ends[0], plain),
            "refused": sorted(
                {row.code for row in report.refusals if row.pass_name == "cache" and row.code != "no-session"}
            ),
        }
        (alone,), _ = self.cached(self.compiled(), 2)
        found["separate_runs_bit_equal"] = torch.equal(alone, ends[2])
        (off,), touched = self.cached(self.compiled(identity=True), 0)
        found["identity_bit_equal"] = torch.equal(off, plain) and touched == 0
        found["seconds"] = time.perf_counter() - begin
        return found


def holds(row: dict[str, Any]) -> bool:
    """Whether a row of the matrix is as promised."""
    return (
        not row.get("failed")
        and not row["refused"]
        and row["graph_breaks"] == row["recompiles"] == 0
        and row["reused"] > 0
        and row["identity_bit_equal"]
        and row["separate_runs_bit_equal"]
        and row["unsplit_call"] < 1e-5
    )


def layers_of(architecture: Architecture) -> int:
    """How many columns a table for each layer has."""
    torch._dynamo.reset()
    options = {"passes": [laconic.cache("taylor", level="layers", interval=1)]}
    fast = torch.compile(architecture.model, backend=laconic.Backend(**options), fullgraph=True)
    architecture.trajectory(fast, 1)
    return sum(row.op == "reuse across steps" for row in laconic.report(fast).rewrites)


def run(names: list[str], policies: list[str], steps: int, save: Any) -> bool:
    """Every pair, saved one by one; True when all rows hold."""
    good = True
    for name in names:
        for guided in (False, True):
            chosen = {label: row for label, row in POLICIES.items() if row.guided is guided and label in policies}
            if not chosen:
                continue
            architecture = ARCHITECTURES[name]()
            architecture = architecture.guided() if guided else architecture
            torch._dynamo.reset()
            alone = torch.compile(architecture.model, fullgraph=True)
            unsplit = (architecture.trajectory(alone, 1), architecture.trajectory(alone, steps))
            layers = layers_of(architecture) if "static, layers" in chosen else 0
            for label, row in chosen.items():
                try:
                    figures = Pair(architecture, row, steps, layers).figures(unsplit)
                except Exception as error:  # a failure is a result
                    figures = {"failed": f"{type(error).__name__}: {error}".split("\n")[0][:200]}
                figures["holds"] = holds(figures)
                good &= figures["holds"]
                show(name, label, figures)
                save(name, label, figures)
    return good


def show(name: str, label: str, row: dict[str, Any]) -> None:
    """One line of the table."""
    if "failed" in row:
        print(f"  {name:<8} {label:<22} failed: {row['failed']}", flush=True)
        return
    pieces = " ".join(f"{count}/{compiled}" for count, compiled in row["pieces"])
    print(
        f"  {name:<8} {label:<22} {'holds' if row['holds'] else 'FAILS':<6} breaks {row['graph_breaks']} "
        f"recompiles {row['recompiles']}  pieces {pieces:<7} reused {row['reused']:<4} "
        f"identity {'=' if row['identity_bit_equal'] else 'differs'}  "
        f"separate {'=' if row['separate_runs_bit_equal'] else 'differs'}  unsplit {row['unsplit_call']:.1e}, "
        f"{row['unsplit_trajectory']:.1e}  cached {row['cached']:.1e}  {row['seconds']:.0f} s  "
        f"{', '.join(row['refused'])}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", nargs="*", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--policies", nargs="*", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()

    def save(name: str, label: str, row: dict[str, Any]) -> None:
        known = json.loads(arguments.out.read_text())["figures"]["rows"] if arguments.out.exists() else {}
        known.setdefault(name, {})[label] = row
        timing.save(str(arguments.out), "policy matrix", {"steps": arguments.steps, "trajectories": 3, "rows": known})

    print(f"3 x {arguments.steps} steps, fullgraph, Inductor, torch {torch.__version__}")
    if not run(arguments.architectures, arguments.policies, arguments.steps, save):
        sys.exit(1)


if __name__ == "__main__":
    main()
