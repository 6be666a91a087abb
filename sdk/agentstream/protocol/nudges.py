"""What the processes of an agent tell each other on its nudge channel."""

from __future__ import annotations

from enum import StrEnum


class Nudge(StrEnum):
    """What is said on the channel that `keys.nudge_channel` names.

    Attributes:
        SWEEP: there are entries that any consumer may claim at once.
        ROUTES: the agent's route is another one.
    """

    SWEEP = "sweep"
    ROUTES = "routes"
