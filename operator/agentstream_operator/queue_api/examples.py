"""Examples of requests and answers, by call: taken from a server with the agents of `examples/quickstart`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {}
"""By operation id, then by status; `body` is that of the request."""
