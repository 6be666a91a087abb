"""A broker or cluster that takes no more writes after a number of them, like that of a killed operator."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any


class Crashed(Exception):  # noqa: N818 - it is no error of the code under test
    """The operator is dead: nothing that it still does has an effect."""


@dataclass
class Fuse:
    """Counts writes; blows when there have been as many as are left.

    Attributes:
        left: writes until it blows; None never blows.
        blown: whether it did.
    """

    left: int | None = None
    blown: bool = False

    def burn(self) -> None:
        """One more write is about to be made."""
        if self.left is not None:
            self.blown = self.blown or self.left == 0
            self.left -= 1
        if self.blown:
            raise Crashed


class Crashing:
    """Passes every call on to what it wraps, until the fuse has blown."""

    def __init__(self, wrapped: Any, fuse: Fuse, writes: frozenset[str]) -> None:
        self._wrapped = wrapped
        self._fuse = fuse
        self._writes = writes

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._wrapped, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            if name in self._writes:
                self._fuse.burn()
            return await method(*args, **kwargs)

        return call


BROKER_WRITES = frozenset({"apply", "janitor"})
CLUSTER_WRITES = frozenset(
    {
        "apply_credentials",
        "delete_credentials",
        "apply_signing_keys",
        "apply_workload",
        "delete_workload",
        "write_status",
        "set_finalizer",
        "emit",
    }
)
