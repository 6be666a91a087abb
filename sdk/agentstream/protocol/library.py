"""The text of the function library `agentstream1`, and how it is loaded onto the server."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from agentstream.errors import ProtocolError, ServerRefused
from agentstream.protocol.commands import REVISION

# A file sees the local names of those before it, of which there may be 200. These keep theirs to themselves.
_SCOPED = frozenset(
    ("page", "add", "once", "originals", "receipts", "whereabouts", "observe", "replay", "janitor", "heal")
)
FILES = (
    "common",
    "entries",
    "page",
    "leases",
    "add",
    "settle",
    "once",
    "originals",
    "claim",
    "sweep",
    "receipts",
    "whereabouts",
    "lag",
    "account",
    "observe",
    "declare",
    "replay",
    "departed",
    "janitor",
    "heal",
)


@cache
def source() -> str:
    """Reads the text of the library from the package."""
    from importlib.resources import files  # noqa: PLC0415 - agents call what is on the server already

    directory = files("agentstream").joinpath("functions")
    texts = {name: directory.joinpath(f"{name}.lua").read_text(encoding="utf-8") for name in FILES}
    return "\n".join(f"do\n{text}end\n" if name in _SCOPED else text for name, text in texts.items())


@cache
def revision() -> int:
    """Reads the revision of the library in this package."""
    found = re.search(r"^local REVISION = (\d+)$", source(), re.MULTILINE)
    if found is None:
        raise ProtocolError("the function library has no REVISION")
    return int(found[1])


async def load(call: Callable[..., Awaitable[Any]]) -> bool:
    """Loads the library unless the server has this revision or a newer one. Returns whether it did.

    Raises:
        ConnectionLost, AccessDenied, ServerRefused: as the call.
    """
    try:
        present = int(await call(*REVISION))
    except ServerRefused:
        present = 0
    if present >= revision():
        return False
    await call("FUNCTION", "LOAD", "REPLACE", source())
    return True
