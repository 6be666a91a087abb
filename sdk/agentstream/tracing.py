"""Whether this program is traced: what is traced, and how, is in `spans`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentstream.spans import Spans


@cache
def spans() -> Spans | None:
    """What makes spans; None where `opentelemetry-api` is not installed.

    It is imported when the first message is sent or handled, not earlier.
    """
    try:
        from agentstream.spans import Spans  # noqa: PLC0415 - as it says
    except ImportError:
        return None
    return Spans()
