"""What ``options={...}`` and ``laconic.Backend(...)`` may say: parsed once, frozen, value-equal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..passes import DEFAULTS
from ..passes.base import Disable, Factory, Pass, UserError, nearest

VERIFY = ("first", "always", "never")
KEYS = ("passes", "error_budget", "verify", "debug", "inductor", "fuel")


@dataclass(frozen=True)
class Options:
    """Parsed options. ``debug`` takes no part in equality: it changes what is written, not what is compiled.

    Attributes:
        passes: the passes named by the user, in order.
        error_budget: relative L2 error allowed at each rewritten site, or None (not measured).
        verify: when sites are proven: ``first`` (once per structure), ``always``, ``never`` (only if proven before).
        debug: a folder, True for a folder of its own, or None to follow ``LACONIC_DEBUG``.
        inductor: Inductor configuration patches, passed through.
        fuel: how many rewrites may be applied in this process' next graph (bisecting), or None.
    """

    passes: tuple[Pass | Disable, ...] = ()
    error_budget: float | None = None
    verify: str = "first"
    debug: bool | str | None = field(default=None, compare=False, repr=False)
    inductor: tuple[tuple[str, Any], ...] = ()
    fuel: int | None = None

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None, mode: str | None = None) -> Options:
        """Check and freeze the user's options.

        Raises:
            UserError: an unknown key, a value of the wrong type or an unknown mode, naming the nearest valid choice.
        """
        if options is not None and not isinstance(options, Mapping):
            raise UserError(f"options must be a dict, not {type(options).__name__}")
        given = dict(options or {})
        for key in given:
            if key not in KEYS:
                raise UserError(f"unknown option {key!r}; {nearest(key, KEYS)} (Inductor's go under 'inductor')")
        return cls(
            passes=_passes(given.get("passes", ())),
            error_budget=_budget(given.get("error_budget")),
            verify=_verify(given.get("verify", "first")),
            debug=_debug(given.get("debug")),
            inductor=_inductor(given.get("inductor"), mode),
            fuel=_fuel(given.get("fuel")),
        )

    def enabled(self) -> dict[str, Pass]:
        """Pass name -> the pass that holds outside decorated regions: defaults, then the list, minus what it disables.

        A pass named twice: the last wins. ``disable`` anywhere in the list removes the pass, so order does not matter.
        """
        chosen = {item.name: item for item in DEFAULTS}
        chosen.update({item.name: item for item in self.passes if isinstance(item, Pass)})
        for item in self.passes:
            if isinstance(item, Disable):
                if item.name is None:
                    chosen.clear()
                chosen.pop(item.name or "", None)
        return chosen


def _passes(value: Any) -> tuple[Pass | Disable, ...]:
    if isinstance(value, Pass | Disable):
        raise UserError(f"options['passes'] must be a list or tuple of passes; write [{value!r}]")
    if not isinstance(value, list | tuple):
        raise UserError(f"options['passes'] must be a list or tuple of passes, not {type(value).__name__}")
    for item in value:
        if isinstance(item, Factory):
            raise UserError(f"{item!r} is not called yet: write {item!r}(...)")
        if isinstance(item, str):
            from ..passes.base import FACTORIES

            raise UserError(f"options['passes'] takes passes, not the string {item!r}; {nearest(item, FACTORIES)}")
        if not isinstance(item, Pass | Disable):
            raise UserError(f"options['passes'] takes passes such as laconic.quantize('int8'), not {item!r}")
    return tuple(value)


def _budget(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"options['error_budget'] must be a number (relative L2), not {value!r}")
    if not value >= 0:
        raise UserError(f"options['error_budget'] must be at least 0, not {value!r}")
    return float(value)


def _verify(value: Any) -> str:
    if value not in VERIFY:
        raise UserError(f"options['verify'] is {value!r}; {nearest(value, VERIFY)}")
    return str(value)


def _debug(value: Any) -> bool | str | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    raise UserError(f"options['debug'] must be True, False or a folder, not {value!r}")


def _fuel(value: Any) -> int | None:
    if value is None:
        text = os.environ.get("LACONIC_FUEL")
        if text is None:
            return None
        if not text.isdigit():
            raise UserError(f"LACONIC_FUEL must be a whole number, not {text!r}")
        return int(text)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"options['fuel'] must be a whole number, not {value!r}")
    return value


def _inductor(value: Any, mode: str | None) -> tuple[tuple[str, Any], ...]:
    """Mode and explicit Inductor options as one sorted tuple of configuration patches."""
    import torch._inductor
    from torch._inductor import config

    patches: dict[str, Any] = {}
    if mode and mode != "default":
        modes = torch._inductor.list_mode_options()
        if mode not in modes:
            raise UserError(f"unknown mode {mode!r}; {nearest(mode, ['default', *modes])}")
        patches.update(modes[mode])
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"options['inductor'] must be a dict of Inductor options, not {type(value).__name__}")
    if value:
        known = config.get_config_copy()
        for key, setting in value.items():
            name = str(key).replace("-", "_")
            if name not in known:
                raise UserError(f"Inductor has no option {key!r}; {_near_inductor(name, known)}")
            patches[name] = setting
    return tuple(sorted(patches.items(), key=lambda item: item[0]))


def _near_inductor(name: str, known: Mapping[str, Any]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else "see torch._inductor.config"
