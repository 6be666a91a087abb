"""Whether this program is traced: what is traced, and how, is in `spans`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentstream.telemetry.spans import Spans


def spans(field: bytes | None = None) -> Spans | None:
    """What makes spans; None where nothing is traced: a span that nobody sees costs as much as a send.

    Args:
        field: the trace context of the message that it is about. It is passed on by whoever is not traced.
    """
    found = _installed()
    return found if found is not None and (field is not None or found.wanted) else None


@cache
def _installed() -> Spans | None:
    """What makes spans; None where `opentelemetry-api` is not installed.

    It is imported when the first message is sent or handled, not earlier.
    """
    try:
        from agentstream.telemetry.spans import Spans  # noqa: PLC0415 - as it says
    except ImportError:
        return None
    return Spans()
