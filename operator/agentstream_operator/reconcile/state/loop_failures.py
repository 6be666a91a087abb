"""What fails in the background loops: counted, and logged once until it works again."""

from __future__ import annotations

import logging
import time
from collections import Counter
from enum import StrEnum

from agentstream.errors import AgentStreamError

_log = logging.getLogger(__name__)

STANDS = 45.0
"""Seconds without a completed round after which a loop counts as standing; rounds take seconds."""


class Loop(StrEnum):
    """The loops, as the log and the probes name them."""

    MEASURE = "measure"
    CLEAN = "clean up"
    ACCESS = "list users and routes"
    REPLIES = "expire replies"
    WAKE = "wake groups"
    PODS = "clean up after pods"
    COSTS = "set pod deletion costs"
    REPLAY = "carry out"


_PROBED = (Loop.MEASURE, Loop.CLEAN)


class LoopFailures:
    """Counts failures of single streams and groups, and remembers when loops completed a round.

    Attributes:
        counts: failures since the start, by loop.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(Loop, 0))
        self._known: dict[tuple[Loop, str], str] = {}
        self._completed: dict[Loop, float] = {}
        self._why: dict[Loop, str] = {}

    def failed(self, loop: Loop, about: object, error: BaseException) -> bool:
        """Counts a failure, and logs it unless the last one of `about` said the same. Returns whether so."""
        self.counts[loop] += 1
        said = f"{type(error).__name__}: {error}"
        known = self._known.get((loop, str(about)))
        self._known[loop, str(about)] = said
        if said != known:
            expected = isinstance(error, AgentStreamError) and error.__cause__ is None
            details = None if expected else error
            what = loop if about is loop else f"{loop} {about}"
            _log.warning("cannot %s, trying again; all else goes on: %s", what, said, exc_info=details)
        return said != known

    def fine(self, loop: Loop, about: object) -> None:
        """Notes that it works."""
        if self._known and self._known.pop((loop, str(about)), None) is not None:
            _log.info("can %s %s again", loop, about)

    def completed(self, loop: Loop) -> None:
        """Notes that a loop completed a round, or has none to do."""
        self._completed[loop] = time.monotonic()
        self._why.pop(loop, None)

    def not_completed(self, loop: Loop, error: BaseException) -> None:
        """Notes why a round of a loop did nothing."""
        self._completed.setdefault(loop, time.monotonic())
        self._why[loop] = f"{type(error).__name__}: {error}"

    def standing(self) -> str | None:
        """Returns which loop has not completed a round for long, and why; None if all do."""
        now = time.monotonic()
        for loop in _PROBED:
            silent = now - self._completed.get(loop, now)
            if silent > STANDS:
                why = self._why.get(loop, "no round has ended")
                return f"cannot {loop} streams for {silent:.0f} s: {why}"
        return None
