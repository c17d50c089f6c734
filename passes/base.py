"""What a pass is: a frozen, value-equal choice of one policy, made by a verb and usable as a decorator."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, ClassVar, TypeVar

from ..patterns.graph import NormalGraph
from ..patterns.reasons import Reason
from ..patterns.sites import Site, Sites
from .plan import Fidelity, Plan, Rewrite

Target = TypeVar("Target")


class UserError(ValueError):
    """A mistake in what the user wrote. It propagates; anything else falls back to the original graph."""


def nearest(word: object, choices: Iterable[str]) -> str:
    """A sentence naming the closest valid choice, for error messages."""
    choices = sorted(choices)
    close = difflib.get_close_matches(str(word), choices, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid choices: {', '.join(repr(c) for c in choices) or 'none'}"


@dataclass(eq=False)
class PlanContext:
    """What a policy may look at while it plans: the graph, every site, and the sites it is enabled on.

    ``whole_graph`` is True when the pass came from ``options["passes"]`` or the defaults (not from a decorated region).
    """

    graph: NormalGraph
    sites: Sites
    targets: Sequence[Site]
    whole_graph: bool = True


@dataclass(frozen=True)
class Policy:
    """One method of one pass. Subclasses are frozen dataclasses: their fields are the user's settings.

    A subclass checks its settings in ``__post_init__`` (raising ValueError or TypeError), declares what it needs in
    the class variables and returns pure data from :meth:`plan`. It never touches a graph.
    """

    kinds: ClassVar[tuple[type[Site], ...]] = ()
    fidelity: ClassVar[Fidelity] = Fidelity.APPROXIMATE
    gradient: ClassVar[bool] = False
    """Whether the rewrite may be differentiated; without, sites whose inputs need a gradient are refused."""

    def plan(self, context: PlanContext) -> Plan:
        """Rewrites and refusals for ``context.targets``; by default :meth:`rewrite` on each of them."""
        plan = Plan()
        for site in context.targets:
            outcome = self.rewrite(site, context)
            if isinstance(outcome, Reason):
                plan.refusals.append((site, outcome))
            elif outcome is not None:
                plan.rewrites.append(outcome)
        return plan

    def rewrite(self, site: Any, context: PlanContext) -> Rewrite | Reason | None:
        """The rewrite of one site, the reason there is none, or None when the policy has nothing to say about it."""
        raise TypeError(f"{type(self).__name__} implements neither plan nor rewrite")


@dataclass(frozen=True)
class Pass:
    """A pass with its policy chosen: ``laconic.quantize("int8")``. Equal settings make equal, hashable passes.

    It is also a decorator for functions, methods and ``nn.Module`` classes: the pass then reaches exactly the
    operations executed inside the decorated region.
    """

    name: str
    policy_name: str
    policy: Policy = field(default_factory=Policy)

    def __call__(self, target: Target) -> Target:
        from .regions import annotate_region

        return annotate_region(self, target)

    def __repr__(self) -> str:
        parts = [] if self.policy_name == FACTORIES[self.name].default else [repr(self.policy_name)]
        for item in dataclasses.fields(self.policy):
            value = getattr(self.policy, item.name)
            if value != item.default:
                parts.append(f"{item.name}={value!r}")
        return f"laconic.{self.name}({', '.join(parts)})"


@dataclass(frozen=True)
class Disable:
    """``laconic.disable("quantize")``: removes a pass (all of them without a name), as an option or a decorator."""

    name: str | None = None

    def __call__(self, target: Target) -> Target:
        from .regions import annotate_region

        return annotate_region(self, target)

    def __repr__(self) -> str:
        return f"laconic.disable({self.name!r})" if self.name is not None else "laconic.disable()"


FACTORIES: dict[str, Factory] = {}


@dataclass(frozen=True)
class Factory:
    """A verb such as ``laconic.quantize``: ``factory(policy=None, /, **settings) -> Pass``.

    Raises:
        ValueError: an unknown policy, or a setting outside its range; the message names the nearest valid choice.
        TypeError: an unknown setting or one of the wrong type.
    """

    name: str
    policies: Mapping[str, type[Policy]]
    default: str | None
    doc: str

    def __hash__(self) -> int:
        return hash(self.name)

    def __call__(self, policy: str | None = None, /, **settings: Any) -> Pass:
        chosen = self.default if policy is None else policy
        if not isinstance(chosen, str) or chosen not in self.policies:
            missing = "needs a policy" if chosen is None else f"has no policy {chosen!r}"
            raise ValueError(f"laconic.{self.name} {missing}; {nearest(chosen, self.policies)}")
        kind = self.policies[chosen]
        names = [item.name for item in dataclasses.fields(kind)]
        for key in settings:
            if key not in names:
                raise TypeError(f"laconic.{self.name}({chosen!r}) has no setting {key!r}; {nearest(key, names)}")
        for item in dataclasses.fields(kind):
            if item.name not in settings and item.default is MISSING and item.default_factory is MISSING:
                raise TypeError(f"laconic.{self.name}({chosen!r}) needs {item.name}=")
        for key, value in settings.items():
            if isinstance(value, list):
                settings[key] = tuple(value)
        return Pass(self.name, chosen, kind(**settings))

    def __repr__(self) -> str:
        return f"laconic.{self.name}"


def register(name: str, policies: Mapping[str, type[Policy]], *, default: str | None = None) -> Factory:
    """Make and register the verb ``name``; its docstring is gathered from its policies."""
    doc = "\n".join(f"{key}: {(kind.__doc__ or '').strip().splitlines()[0]}" for key, kind in policies.items())
    factory = Factory(name, dict(policies), default, doc)
    FACTORIES[name] = factory
    return factory


def positive(name: str, value: object, *, kind: type = int, zero: bool = True) -> None:
    """Check that a setting is a number of ``kind`` that is positive (or zero); TypeError or ValueError if not."""
    allowed = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise TypeError(f"{name} must be {'a number' if kind is float else 'an integer'}, not {value!r}")
    if value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be {'at least 0' if zero else 'above 0'}, not {value!r}")
