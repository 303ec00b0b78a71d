"""name_of: what identifies a callable in a file."""

from __future__ import annotations

import functools
import inspect
from typing import Any


def name_of(thing: Any) -> str | None:
    """Return what identifies a callable in a checkpoint: its ``repr``, or a name, no address."""
    if thing is None:
        return None
    if isinstance(thing, functools.partial):
        names = [name_of(value) for value in (*thing.args, *thing.keywords.values())]
        return f"partial({name_of(thing.func)}, {names}, {list(thing.keywords)})"
    if inspect.ismethod(thing):
        return f"{name_of(thing.__self__)}.{thing.__name__}"
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    name = f"{named.__module__}.{named.__qualname__}"
    return name if named is thing or " at 0x" in repr(thing) else repr(thing)
