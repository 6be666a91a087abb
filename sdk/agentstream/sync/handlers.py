"""Handlers that get what a thread can use."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from agentstream.consuming import delivery
from agentstream.sync.delivery import SyncDelivery
from agentstream.sync.loop import LoopThread

_Handler = TypeVar("_Handler", bound=Callable[..., Any])


class Exit(BaseException):
    """A handler asks for the end of the program, which an event loop would take for its own.

    Attributes:
        error: what it raised.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error: BaseException = error


def adapted(function: _Handler, loop: LoopThread) -> _Handler:
    """A handler of the asynchronous face that calls one of the synchronous face.

    It shows the parameters that the other one would have, so that what it is to be called with is decided in
    one place.

    Raises:
        TypeError: the function is asynchronous.
    """
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object may be called, too
    ):
        raise TypeError(f"{function!r} is asynchronous: declare it with agentstream.Agent.on")

    @functools.wraps(function)
    def handler(*arguments: Any) -> Any:
        try:
            return function(*(_for_thread(argument, loop) for argument in arguments))
        except (SystemExit, KeyboardInterrupt) as error:
            raise Exit(error) from None

    signature = _signature(function)
    if signature is not None:
        handler.__signature__ = signature  # type: ignore[attr-defined]
    return typing.cast("_Handler", handler)


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """With the deliveries of the other face; None if it cannot be told, of which `Agent.on` complains."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except Exception:  # noqa: BLE001 - whatever annotations may raise
        return None
    return signature.replace(
        parameters=[
            parameter.replace(annotation=_translated(parameter.annotation))
            for parameter in signature.parameters.values()
        ]
    )


def _translated(annotation: Any) -> Any:
    """The annotation that says the same to the other face.

    Raises:
        TypeError: it says what no thread can use.
    """
    origin = typing.get_origin(annotation)
    if delivery.Delivery in (annotation, origin):
        raise TypeError("a handler that is not asynchronous takes the Delivery of agentstream.sync")
    if annotation is SyncDelivery:
        return delivery.Delivery
    if origin is SyncDelivery:
        return delivery.Delivery[typing.get_args(annotation)]  # type: ignore[misc]
    if origin is list:
        return list[tuple(map(_translated, typing.get_args(annotation)))]  # type: ignore[misc]
    return annotation


def _for_thread(argument: Any, loop: LoopThread) -> Any:
    if isinstance(argument, delivery.Delivery):
        return SyncDelivery(argument, loop)
    if isinstance(argument, list):
        return [_for_thread(one, loop) for one in argument]
    return argument
