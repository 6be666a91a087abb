"""Adapts handlers of the synchronous face, which take a `SyncDelivery`, to the asynchronous agent."""

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


def adapted(function: _Handler, loop: LoopThread) -> _Handler:
    """Wraps a handler so that `agentstream.Agent.on` takes it.

    The wrapper's signature names the asynchronous `Delivery`, so that `Agent.on` decides for both faces what
    a handler is called with. Raises TypeError for an asynchronous function.
    """
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object may be called, too
    ):
        raise TypeError(f"{function!r} is asynchronous: declare it with agentstream.Agent.on")

    @functools.wraps(function)
    def handler(*arguments: Any) -> Any:
        return function(*(_for_thread(argument, loop) for argument in arguments))

    signature = _signature(function)
    if signature is not None:
        handler.__signature__ = signature  # type: ignore[attr-defined]
    return typing.cast("_Handler", handler)


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """Returns the signature with asynchronous deliveries; None if it is unknown: `Agent.on` then says why."""
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
    """Translates the annotation of a parameter to the asynchronous face, unless it belongs there already."""
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
