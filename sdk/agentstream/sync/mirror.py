"""Makes synchronous methods and docstrings out of asynchronous ones, so that both faces stay the same."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Coroutine
from types import FunctionType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar

from agentstream.sync.loop import Ended, LoopThread

_P = ParamSpec("_P")
_Face = TypeVar("_Face")
_Result = TypeVar("_Result")
_Returned = TypeVar("_Returned")
_Original = TypeVar("_Original")
_Iterated = TypeVar("_Iterated", bound="_Closable")

Call = Callable[[], Coroutine[Any, Any, _Result]]
"""Calls an asynchronous method with its arguments; the loop's thread does that."""

_NAMES = {"close": "aclose"} | {f"__{name}__": f"__a{name}__" for name in ("enter", "exit", "iter", "next")}
_WORDS = (
    ("async with", "with"),
    ("async for", "for"),
    ("await ", ""),
    ("an asynchronous context", "a context"),
    ("asynchronous iterator", "iterator"),
    ("It is asynchronous, or runs in a thread", "It runs in a thread"),
    ("StopAsyncIteration", "StopIteration"),
    ("as many tasks", "as many threads"),
    ("several tasks", "several threads"),
    ("event loop's clock", "clock of `time.monotonic`"),
    ("aclose", "close"),
)


def mirrors(
    original: Callable[Concatenate[Any, _P], Coroutine[Any, Any, _Result]],
) -> Callable[[Callable[[_Face], None]], Callable[Concatenate[_Face, _P], _Result]]:
    """Makes the decorated method call an asynchronous one in the loop's thread, and wait for its result.

    The method gets the signature and the docstring of the original; its body is not used. A docstring of its
    own is another entry of "Raises:".
    """
    return mirrors_by(LoopThread.run, original)


def shares(
    original: Callable[Concatenate[Any, _P], _Result],
) -> Callable[[Callable[[_Face], None]], Callable[Concatenate[_Face, _P], _Result]]:
    """Makes the decorated method call another one that is not asynchronous, in the caller's thread."""
    return mirrors_by(lambda _, call: call(), original)


def mirrors_by(
    run: Callable[[LoopThread, Callable[[], _Result]], _Returned],
    original: Callable[Concatenate[Any, _P], _Result],
) -> Callable[[Callable[[_Face], None]], Callable[Concatenate[_Face, _P], _Returned]]:
    """As `mirrors`, with a function that makes the call, and adapts its result."""

    def decorate(method: Callable[[_Face], None]) -> Callable[Concatenate[_Face, _P], _Returned]:
        name = original.__name__

        def mirror(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> _Returned:
            return run(self._loop, functools.partial(getattr(self._original, name), *args, **kwargs))

        return _shown_as(method, original, mirror)

    return decorate


class SyncFace(Generic[_Original]):
    """The synchronous face of an asynchronous object.

    In a subclass, a public annotation is a read-only property: the attribute of the original. Members without
    a docstring get that of the original's member.
    """

    __slots__ = ("_loop", "_original")

    def __init__(self, original: _Original, loop: LoopThread) -> None:
        self._original = original
        self._loop = loop

    def __init_subclass__(cls, of: type | None = None) -> None:
        """Adds the properties, and derives docstrings from `of`, the class of the originals."""
        super().__init_subclass__()
        for name in inspect.get_annotations(cls):
            source = getattr(of, name, None)
            said = f"As `{name}` of the asynchronous face." if source is None else inspect.getdoc(source)
            setattr(cls, name, property(operator.attrgetter(f"_original.{name}"), doc=said))
        for name, member in vars(cls).items():
            shown = getattr(member, "__func__", member)
            source = getattr(of, _NAMES.get(name, name), None)
            if source is not None and isinstance(shown, FunctionType | property) and not shown.__doc__:
                shown.__doc__ = synchronous(inspect.getdoc(source) or "")

    def __repr__(self) -> str:
        """As the original."""
        return repr(self._original)


class _Closable(Protocol):
    """What `SyncIterator` closes."""

    async def aclose(self) -> None:
        """Ends the iteration."""


class SyncIterator(SyncFace[_Iterated]):
    """The synchronous face of an asynchronous iterator."""

    def close(self) -> None:
        """Ends the iteration; deliveries that are not settled are handed back."""
        if not self._loop.has_ended:
            self._loop.complete(self._original.aclose)

    def __enter__(self) -> Self:
        """Returns the iterator; closes it at the end."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the iterator."""
        self.close()

    def _next(self, fetch: Call[_Result]) -> _Result:
        """Waits for the next item; raises StopIteration where there are no more."""
        try:
            return self._loop.run(fetch)
        except (StopAsyncIteration, Ended):
            if self._loop.is_here:
                raise StopIteration from None
            raise


def synchronous(text: str) -> str:
    """Puts a docstring of the asynchronous face into words that are true of the other one."""
    for word, other in _WORDS:
        text = text.replace(word, other)
    return text


def _shown_as(
    method: Callable[..., object],
    original: Callable[..., object],
    mirror: Callable[Concatenate[Any, _P], _Result],
) -> Callable[Concatenate[Any, _P], _Result]:
    """Gives a function the signature and docstring of its original, and the name of the decorated method."""
    functools.update_wrapper(mirror, original)
    mirror.__module__, mirror.__qualname__ = method.__module__, method.__qualname__
    mirror.__doc__ = synchronous(inspect.getdoc(original) or "")
    if method.__doc__:
        mirror.__doc__ += f"\n    {method.__doc__}"
    return mirror
