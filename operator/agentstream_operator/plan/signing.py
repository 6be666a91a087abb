"""When a stream gets a new signing key, and from when on that one signs."""

from __future__ import annotations

from typing import Final

from agentstream.protocol.signatures import Keys, SigningKey

SPREAD: Final = 120
"""Seconds until a change of a Secret is in every pod that mounts it: a kubelet looks once in a minute."""

LIVE: Final = 2
"""How many keys of a stream are valid: what the one before signed is still on its way."""


def due_in(keys: Keys, rotation: int, now: float) -> float | None:
    """Seconds until a key is to be made; None if none is.

    Args:
        keys: those that there are, the newest first.
        rotation: the number of the rotation that is asked for.
        now: seconds since 1970.
    """
    if not keys:
        return 0.0
    newest = keys[0]
    if newest.rotation >= rotation:
        return None
    if len(keys) < LIVE:
        return 0.0
    # the oldest one goes: nobody may still be signing with it
    return max(0.0, newest.signs_from + SPREAD - now)


def with_key(keys: Keys, key_id: str, secret: str, rotation: int, now: float) -> Keys:
    """The keys with a new one, which signs when it is everywhere; the first one does at once."""
    signs_from = int(now) + (SPREAD if keys else 0)
    return (SigningKey(key_id, secret, signs_from, rotation), *keys[: LIVE - 1])
