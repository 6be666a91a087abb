"""Decides when a stream gets a new signing key, and when it starts to sign."""

from __future__ import annotations

from typing import Final

from agentstream.protocol.signatures import Keys, SigningKey

SPREAD: Final = 120
"""Seconds until a changed Secret is mounted in every pod: a kubelet syncs once a minute."""

LIVE: Final = 2
"""Number of valid keys: messages signed with the previous one are still under way."""


def due_in(keys: Keys, rotation: int, now: float) -> float | None:
    """Returns the seconds until a new key is due, if one is.

    `keys` has the newest first, `rotation` is the desired rotation number, `now` counts seconds since 1970.
    """
    if not keys:
        return 0.0
    newest = keys[0]
    if newest.rotation >= rotation:
        return None
    if len(keys) < LIVE:
        return 0.0
    # the oldest one is removed: no pod may still sign with it
    return max(0.0, newest.signs_from + SPREAD - now)


def with_key(keys: Keys, key_id: str, secret: str, rotation: int, now: float) -> Keys:
    """Returns the keys with a new one, which signs once it has reached every pod; the first one at once."""
    signs_from = int(now) + (SPREAD if keys else 0)
    return (SigningKey(key_id, secret, signs_from, rotation), *keys[: LIVE - 1])
