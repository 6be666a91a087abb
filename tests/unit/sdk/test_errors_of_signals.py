"""Errors that a signal's handler raises are told from those of the code that it interrupted."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest

from agentstream.signals import is_of_signal

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Shutdown(Exception):  # noqa: N818
    """What an application ends by."""


class Application:
    """Has handlers of all kinds."""

    def method(self, *_: object) -> None:
        raise Shutdown

    def __call__(self, *_: object) -> None:
        self.deeper()

    def deeper(self) -> None:
        raise SystemExit(0)


def function(*_: object) -> None:
    raise KeyboardInterrupt


HANDLERS: dict[str, Callable[..., Any]] = {
    "a function": function,
    "a method": Application().method,
    "an object": Application(),
    "a partial": functools.partial(functools.partial(function, 1), 2),
}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The handlers of the test's program, afterwards."""
    handlers = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, handlers, strict=True):
        signal.signal(number, handler)


def work(number: signal.Signals) -> None:
    signal.raise_signal(number)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
def test_what_a_handler_of_a_signal_raises_is_of_that_signal(
    handler: Callable[..., Any], number: signal.Signals
) -> None:
    signal.signal(number, handler)
    with pytest.raises(BaseException) as raised:  # noqa: PT011 - each raises something else
        work(number)
    assert is_of_signal(raised.value)


@pytest.mark.parametrize("error", [SystemExit(2), Shutdown(), KeyboardInterrupt(), ValueError()], ids=repr)
@pytest.mark.parametrize(
    "handler",
    [*HANDLERS.values(), signal.SIG_IGN, signal.SIG_DFL, Mock()],
    ids=[*HANDLERS, "ignored", "none", "a mock"],
)
def test_what_the_code_raises_itself_is_not(handler: Any, error: BaseException) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)
    with pytest.raises(type(error)) as raised:
        _raise(error)
    assert not is_of_signal(raised.value)


def test_pythons_own_interruption_counts_as_of_a_signal_in_the_main_thread_only() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt) as raised:
        work(signal.SIGINT)
    assert is_of_signal(raised.value)
    elsewhere: list[bool] = []
    thread = threading.Thread(target=lambda: elsewhere.append(is_of_signal(raised.value)))
    thread.start()
    thread.join()
    assert elsewhere == [False]


def _raise(error: BaseException) -> None:
    raise error
