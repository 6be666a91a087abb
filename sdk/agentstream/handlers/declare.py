"""Declaring handlers: which function gets which messages, and in what form."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from agentstream.consuming.delivery import Delivery
from agentstream.errors import InvalidMessage
from agentstream.payloads.types import is_payload_type
from agentstream.payloads.upcasting import Read, Upcasters, message_reader
from agentstream.protocol.envelope import Message, MessageType
from agentstream.protocol.reasons import Reason

DEFAULT_MAX_WAIT = 0.05

Function = Callable[..., Any]
InThread = Callable[..., Awaitable[Any]]
"""Runs a function that blocks, in a thread; called with the function and its arguments."""

_FORMS = "(payload), (payload, delivery), (delivery) or (message)"
_EMPTY = inspect.Parameter.empty


class Form(Enum):
    """The arguments of a handler."""

    PAYLOAD = "payload"
    DELIVERY = "delivery"
    MESSAGE = "message"
    BOTH = "payload and delivery"


class Subscription(NamedTuple):
    """The source of a handler's messages; without a name, the only stream and group of the agent."""

    stream: str | None
    group: str | None


class Handler(msgspec.Struct, frozen=True):
    """A function for the messages of one type; see `Agent.on`. One that blocks runs in a thread."""

    function: Function
    form: Form
    read: Read
    blocks: bool
    batch_size: int | None
    max_wait: float

    async def __call__(self, in_thread: InThread, *deliveries: Delivery[Any]) -> Any:
        """Calls the function with these deliveries, and returns its result."""
        forms = [self._arguments(delivery) for delivery in deliveries]
        arguments = forms[0] if self.batch_size is None else ([form[0] for form in forms],)
        called = in_thread(self.function, *arguments) if self.blocks else self.function(*arguments)
        result = await called
        # as from a decorator around an asynchronous function, or where an `await` was forgotten
        return await result if result is not None and inspect.isawaitable(result) else result

    def _arguments(self, delivery: Delivery[Any]) -> tuple[Any, ...]:
        if self.form is Form.MESSAGE:
            return (delivery.message,)
        if self.form is Form.DELIVERY:
            return (delivery,)
        return (delivery.payload, delivery) if self.form is Form.BOTH else (delivery.payload,)


class Handlers:
    """All handlers of one agent, and the upcasters of the payloads that they get."""

    def __init__(self) -> None:
        self.upcasters: Upcasters = Upcasters()
        self._by_type: dict[Subscription, dict[str, Handler]] = {}

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """The subscriptions that have handlers."""
        return tuple(self._by_type)

    def of(self, subscription: Subscription) -> dict[str, Handler]:
        """Returns the handlers of a subscription by type of message."""
        return self._by_type[subscription]

    def add(
        self,
        function: Function,
        message_type: str,
        subscription: Subscription,
        *,
        version: int | None = None,
        batch_size: int | None = None,
        max_wait: float = DEFAULT_MAX_WAIT,
    ) -> None:
        """Adds a handler; see `Agent.on`.

        Raises:
            ValueError: the type of message is unknown or has a handler already, or a number is not positive.
            TypeError: the function's parameters are not those of a handler.
        """
        if message_type not in typing.get_args(MessageType):
            raise ValueError(f"a message is a {', '.join(typing.get_args(MessageType))}, not {message_type}")
        if (batch_size is not None and batch_size < 1) or max_wait <= 0:
            raise ValueError("batch_size and max_wait must be positive")
        if self._by_type and (subscription.stream is None) != (None in {s.stream for s in self._by_type}):
            raise ValueError("name the stream of all handlers, or of none if the agent consumes only one")
        known = self._by_type.get(subscription, {})
        if message_type in known:
            raise ValueError(
                f"{message_type} has a handler already: {_name(known[message_type].function)}; "
                f"use one handler for all kinds of payload of a type"
            )
        if _is_any(function, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
            raise TypeError(
                f"{_name(function)}: it is a generator, of which a call runs nothing; use no yield"
            )
        form, payload_type = _form(function) if batch_size is None else _batch_form(function)
        if form is Form.MESSAGE and version is not None:
            raise TypeError(f"{_name(function)}: a handler of messages gets all versions; leave out version=")
        try:
            read = message_reader(payload_type, version, self.upcasters)
        except TypeError as error:
            raise TypeError(f"{_name(function)}: {error}") from error
        handler = Handler(
            function, form, read, not _is_any(function, inspect.iscoroutinefunction), batch_size, max_wait
        )
        self._by_type.setdefault(subscription, {})[message_type] = handler

    def reader(self, subscription: Subscription) -> Read:
        """Returns a function that reads the payloads of all messages of a subscription."""
        by_type = self._by_type[subscription]

        def read(message: Message) -> Any:
            handler = by_type.get(message.type)
            if handler is None:
                known = ", ".join(sorted(by_type))
                what = f"no handler takes {message.type}; there are handlers of {known}"
                raise InvalidMessage(what, reason=Reason.NO_HANDLER)
            return handler.read(message)

        return read


def _form(function: Function) -> tuple[Form, Any]:
    """Returns the arguments of a handler, and the type of its payload.

    Raises:
        TypeError: the function's parameters are not those of a handler.
    """
    first, *others = _annotations(function)
    _check_answer(function)
    form, payload_type = _single(function, first)
    if not others:
        return form, payload_type
    second, *more = others
    if more or form is not Form.PAYLOAD or not (second is _EMPTY or _is_delivery(second)):
        raise _not_taken(function)
    of_delivery = _payload_of_delivery(second)
    if first is _EMPTY:
        return Form.BOTH, of_delivery
    if typing.get_args(second) and of_delivery != payload_type:
        raise TypeError(f"{_name(function)}: its payload and its delivery have different types")
    return Form.BOTH, payload_type


def _check_answer(function: Function) -> None:
    """Raises TypeError if a function is annotated to return a value that no message can carry."""
    returned = inspect.signature(function, eval_str=True).return_annotation
    is_union = typing.get_origin(returned) in (typing.Union, types.UnionType)
    for kind in typing.get_args(returned) if is_union else (returned,):
        origin = typing.get_origin(kind) or kind
        said = isinstance(origin, type) and origin not in (_EMPTY, type(None))
        if said and not issubclass(origin, Awaitable) and not is_payload_type(kind):
            raise TypeError(
                f"{_name(function)}: it returns the payload of the answer or None, not {returned}"
            )


def _batch_form(function: Function) -> tuple[Form, Any]:
    """Does the same for a function that takes a list."""
    first, *others = _annotations(function)
    returned = inspect.signature(function, eval_str=True).return_annotation
    if others or not (first in (_EMPTY, list) or typing.get_origin(first) is list):
        raise TypeError(f"{_name(function)}: a handler of batches takes a list of one of {_FORMS[:9]}")
    if returned not in (_EMPTY, None, type(None), Any):
        raise TypeError(f"{_name(function)}: a handler of batches returns nothing; use delivery.reply")
    return _single(function, *(typing.get_args(first) or (_EMPTY,)))


def _single(function: Function, annotation: Any) -> tuple[Form, Any]:
    if annotation is Message:
        return Form.MESSAGE, dict
    if annotation is not _EMPTY and _is_delivery(annotation):
        return Form.DELIVERY, _payload_of_delivery(annotation)
    if annotation is not _EMPTY and not is_payload_type(annotation):
        raise _not_taken(function)
    return Form.PAYLOAD, dict if annotation is _EMPTY else annotation


def _annotations(function: Function) -> list[Any]:
    """Returns the annotations of a function's required parameters.

    Raises:
        TypeError: they cannot be resolved, or there are none.
    """
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
    except Exception as error:
        what = f"its annotations cannot be resolved: {error}; define the names in them at the top of a module"
        raise TypeError(f"{_name(function)}: {what}") from error
    needed = [p for p in parameters if p.kind is not p.KEYWORD_ONLY or p.default is _EMPTY]
    if not needed or any(p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in needed):
        raise _not_taken(function)
    return [parameter.annotation for parameter in needed]


def _is_delivery(annotation: Any) -> bool:
    return (typing.get_origin(annotation) or annotation) is Delivery


def _payload_of_delivery(annotation: Any) -> Any:
    return next(iter(typing.get_args(annotation)), dict)


def _not_taken(function: Function) -> TypeError:
    return TypeError(
        f"{_name(function)}: a handler takes {_FORMS}, where a payload is a dict, msgspec.Struct, dataclass, "
        f"TypedDict or pydantic model; what else it needs it has as keywords with defaults"
    )


def _is_any(function: Function, *kinds: Callable[[object], bool]) -> bool:
    """Whether a function, or an object that may be called, is of one of these kinds."""
    call = getattr(function, "__call__", None)  # noqa: B004
    return any(kind(function) or kind(call) for kind in kinds)


def _name(function: Function) -> str:
    return getattr(function, "__qualname__", repr(function))
