"""Loads `spans` if the program is traced."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentstream.telemetry.spans import Spans


def spans(field: bytes | None = None) -> Spans | None:
    """The maker of spans; None without tracing, as a span costs as much as sending a message.

    Args:
        field: the trace context of the message, which is passed on even by programs without tracing.
    """
    found = _installed()
    return found if found is not None and (field is not None or found.wanted) else None


@cache
def _installed() -> Spans | None:
    """The maker of spans, imported with the first message; None without `opentelemetry-api`."""
    try:
        from agentstream.telemetry.spans import Spans  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    return Spans()
