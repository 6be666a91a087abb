"""How ended processes are restarted, and how their end is put into words."""

from __future__ import annotations

import signal

STEADY = 3.0
"""Seconds after which a process did not fail at its start: its next failure counts as the first."""

_FIRST = 0.2
_LONGEST = 30.0


def restart_delay(failures: int) -> float:
    """Seconds before a process is started again that failed so many times in a row."""
    # a longer streak must not overflow, and is above the cap anyway
    return min(_LONGEST, _FIRST * 2.0 ** min(failures - 1, 20))


def describe_exit(code: int) -> str:
    """Says how a process ended, given what `wait` returned: negative for a signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
