"""Functions of Dynamo's that this backend puts others in the place of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def replace(owner: Any, name: str, around: Callable[[Any], Any]) -> None:
    """Put ``around(function)`` in the place of ``owner``'s function ``name``, once.

    Nothing is done in a torch that has no function of that name, or one that ``around`` knows no use of (None).
    """
    own = getattr(owner, name, None)
    # A second import of the package finds the function replaced.
    made = around(own) if callable(own) and not hasattr(own, "laconic") else None
    if made is not None:
        made.laconic = True
        setattr(owner, name, made)
