"""Telling a person once that something does not work, and once that it works again."""

from __future__ import annotations

import logging

_log = logging.getLogger("agentstream")


class Trouble:
    """The state of something that is tried again and again.

    Args:
        what: what it is, for the log.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._known = ""

    def met(self, error: Exception) -> None:
        """It failed. Only a failure of another kind than the last one is logged."""
        kind = f"{type(error).__name__} {str(error).partition(' ')[0]}"
        if kind != self._known:
            self._known = kind
            _log.warning("cannot %s, trying again: %s", self._what, error)

    def over(self) -> None:
        """It succeeded."""
        if self._known:
            self._known = ""
            _log.warning("can %s again", self._what)
