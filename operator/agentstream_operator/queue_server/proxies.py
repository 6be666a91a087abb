"""Knows which proxies are trusted, by a CA in a file that is replaced while the server runs."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentstream_operator.serve.request_header import RequestHeaderConfig

_log = logging.getLogger(__name__)

EVERY: Final = 10.0
"""Seconds between two looks at the file."""


class InvalidAuthority(ValueError):  # noqa: N818 - named after what is wrong
    """A file that is no PEM certificate; the message says why."""


@dataclass(slots=True, eq=False)
class TrustedProxies:
    """The proxies whose certificates a CA has signed.

    Attributes:
        file: has the CA, as PEM.
        names: common names that their certificates may have.
        changed: is called with what is trusted, at first and whenever the file has changed; returns whether
            open connections are those of another CA.
    """

    file: Path
    names: frozenset[str]
    changed: Callable[[RequestHeaderConfig], bool]
    config: RequestHeaderConfig = field(init=False)

    def __post_init__(self) -> None:
        self.config = RequestHeaderConfig(read_authority(self.file), self.names)
        self.changed(self.config)

    async def watch(self, drop: Callable[[], object], every: float = EVERY) -> None:
        """Reads the file again and again; never returns. What cannot be read changes nothing.

        Calls `drop` when there is another CA: connections that the former one admitted are to end.
        """
        while True:
            await asyncio.sleep(every)
            if self.look():
                drop()

    def look(self) -> bool:
        """Reads the file again. Returns whether there is another CA."""
        try:
            found = read_authority(self.file)
        except InvalidAuthority as error:
            _log.warning("the CA of proxies stays as it was: %s", error)
            return False
        if found == self.config.client_ca:
            return False
        self.config = RequestHeaderConfig(found, self.names)
        return self.changed(self.config)


def read_authority(file: Path) -> str:
    """Reads a CA.

    Raises:
        InvalidAuthority: the file is none, or cannot be read.
    """
    try:
        text = file.read_text(encoding="ascii")
        # of an empty text, Python would load the system's authorities instead
        ssl.create_default_context(cadata=text or "nothing")
    except (OSError, ValueError) as error:
        raise InvalidAuthority(f"{file} is not a PEM certificate: {error}") from error
    return text
