"""Names of arguments: an unknown one is refused with the nearest known one."""

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from attention_proto.stages import OPTIONS

ClassT = TypeVar("ClassT")


def suggests_keywords(cls: type[ClassT]) -> type[ClassT]:
    """Have the public methods of a class refuse an unknown keyword by a TypeError that tells the nearest one."""
    for name, method in list(vars(cls).items()):
        if inspect.isfunction(method) and (name == "__init__" or not name.startswith("_")):
            setattr(cls, name, _checked(method, cls.__name__ if name == "__init__" else name))
    return cls


def _checked(method: Callable[..., Any], shown: str) -> Callable[..., Any]:
    known = frozenset(list(inspect.signature(method).parameters)[1:])
    if not known:
        return method
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def checked_coroutine(*args: Any, **given: Any) -> Any:
            if not given.keys() <= known:
                raise TypeError(_refusal(shown, given.keys() - known, known))
            return await method(*args, **given)

        return checked_coroutine

    @functools.wraps(method)
    def checked(*args: Any, **given: Any) -> Any:
        if not given.keys() <= known:
            raise TypeError(_refusal(shown, given.keys() - known, known))
        return method(*args, **given)

    return checked


def _refusal(shown: str, unknown: set[str], known: frozenset[str]) -> str:
    name = min(unknown)
    near = difflib.get_close_matches(name, sorted(known), 1)
    if name in OPTIONS and "outputs" in known:
        hint = f'it is an option of an output: outputs=[{{"name": "weights", "{name}": ...}}]'
    elif near:
        hint = f"did you mean {near[0]!r}?"
    else:
        hint = f"it takes {', '.join(sorted(known))}"
    return f"{shown}() got an unexpected keyword argument {name!r}; {hint}"
