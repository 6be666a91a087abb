"""When `agentstream dev` ends by itself."""

from __future__ import annotations

from agentstream_operator.reconcile.report.view import View


class IdleDetector:
    """Notices when everything has been idle for a while after some work was done.

    Args:
        seconds: for how long nothing must have happened.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since = 0.0
        self._before: object = None

    def reached(self, view: View, now: float) -> bool:
        """Whether that is so.

        Args:
            view: the numbers now.
            now: seconds on any steady clock.
        """
        present = (
            tuple(stream.added for stream in view.streams),
            tuple(group.account for group in view.groups),
        )
        # what was measured before the server went away says nothing
        idle = view.reachable and all(group.backlog == 0 and group.delayed == 0 for group in view.groups)
        if present != self._before or not idle:
            self._before, self._since = present, now
            return False
        worked = any(g.account.acknowledged + g.account.dead > 0 for g in view.groups)
        return worked and now - self._since >= self._seconds
