"""Sets, verifies, lists and saves the agents' ACL users.

Users whose names do not start with the installation are neither read nor changed. Passwords arrive as hashes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Mapping

from agentstream.errors import AgentStreamError
from agentstream_operator.broker.server import BrokerClient
from agentstream_operator.plan.actions import Probe, SetUser
from agentstream_operator.plan.observed import UserSeen

_log = logging.getLogger(__name__)
_NO_FILE = "not configured to use an ACL file"
_LONGEST_DELAY = 60.0


class AccessNotEnforced(AgentStreamError):  # noqa: N818 - named like the SDK's errors, after what is wrong
    """The server allows a user a command that its rules deny, or denies one that they allow."""


class Users:
    """The users of one installation on one server; their names start with it.

    They may change to another database only if agents are to use one, as `database` says. A change is saved
    `save_delay` seconds later, so that many changes are saved together.
    """

    def __init__(
        self, client: BrokerClient, installation: str, *, database: int = 0, save_delay: float = 1.0
    ) -> None:
        self._client = client
        self._everyone = ("+select",) if database else ()
        self._prefix = f"{installation}."
        self._save_delay = save_delay
        self._unsaved = False
        self._closing = asyncio.Event()
        self._saving: asyncio.Task[None] | None = None
        self._one_list = asyncio.Lock()
        self._next_list: asyncio.Task[Mapping[str, UserSeen]] | None = None
        self._lists: set[asyncio.Task[Mapping[str, UserSeen]]] = set()

    async def set(self, action: SetUser) -> UserSeen:
        """Sets a user, closes its connections if asked to, and verifies its rights. Returns its state.

        Raises:
            AccessNotEnforced: a probe failed; the user is set.
            AgentStreamError: as `Client.call`.
        """
        self._check_ours(action.name)
        hashes = (f"#{digest}" for digest in action.password_hashes)
        call = self._client.call
        # after the new passwords, or who has the former one connects again at once
        close = [call("CLIENT", "KILL", "USER", action.name)] if action.disconnect else []
        try:
            _, *verdicts = await asyncio.gather(
                call("ACL", "SETUSER", action.name, *action.rules, *self._everyone, *hashes),
                *(call("ACL", "DRYRUN", action.name, *probe.command) for probe in action.probes),
                *close,
            )
        finally:
            self._save_soon()
        for probe, verdict in zip(action.probes, verdicts, strict=False):
            _check(action.name, probe, verdict)
        seen = (await self.list()).get(action.name)
        if seen is None:
            raise AccessNotEnforced(
                f"ACL user {action.name} was deleted as soon as it was set: another program changes ACL users"
            )
        return seen

    async def delete(self, name: str) -> bool:
        """Deletes a user; the server closes its connections. Returns whether there was one.

        Raises:
            AgentStreamError: as `Client.call`.
        """
        self._check_ours(name)
        deleted = await self._client.call("ACL", "DELUSER", name)
        self._save_soon()
        return bool(deleted)

    async def list(self) -> Mapping[str, UserSeen]:
        """Lists the installation's users, each with a fingerprint that changes with its rules or passwords.

        Callers share a listing that has not been sent yet.

        Raises:
            AgentStreamError: as `Client.call`.
        """
        if self._next_list is None:
            self._next_list = asyncio.create_task(self._read(), name="list users")
            self._lists.add(self._next_list)
            self._next_list.add_done_callback(self._lists.discard)
        return await asyncio.shield(self._next_list)

    async def close(self) -> None:
        """Saves changed users if the server can be reached, and cancels listings."""
        self._closing.set()
        if self._saving is not None:
            await self._saving
        lists = tuple(self._lists)
        for task in lists:
            task.cancel()
        await asyncio.gather(*lists, return_exceptions=True)

    def _check_ours(self, name: str) -> None:
        if not name.startswith(self._prefix):
            raise ValueError(f"user {name} does not belong to this installation: {self._prefix}")

    async def _read(self) -> Mapping[str, UserSeen]:
        async with self._one_list:
            self._next_list = None
            lines = await self._client.call("ACL", "LIST")
        start = f"user {self._prefix}".encode()
        return {line.split(b" ", 2)[1].decode(): _seen(line) for line in lines if line.startswith(start)}

    def _save_soon(self) -> None:
        self._unsaved = True
        if self._saving is None or self._saving.done():
            self._saving = asyncio.create_task(self._keep_saving(), name="save users")

    async def _keep_saving(self) -> None:
        delay = self._save_delay
        while self._unsaved:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), delay)
            await self._save()
            if self._closing.is_set():
                return
            delay = min(2 * delay, _LONGEST_DELAY)

    async def _save(self) -> None:
        # a change from here on needs another save
        self._unsaved = False
        try:
            await self._client.call("ACL", "SAVE")
        except AgentStreamError as error:
            if _NO_FILE not in str(error):
                self._unsaved = True
                _log.warning("the server did not save its ACL users, saving again later: %s", error)


def _seen(line: bytes) -> UserSeen:
    """Reads a line of ACL LIST."""
    passwords = (word[1:].decode() for word in line.split() if word.startswith(b"#"))
    return UserSeen(hashlib.blake2b(line, digest_size=16).hexdigest(), frozenset(passwords))


def _check(name: str, probe: Probe, verdict: bytes) -> None:
    allowed = verdict == b"OK"
    if allowed != probe.allowed:
        is_now, should = ("may", "must not") if allowed else ("may not", "must be able to")
        raise AccessNotEnforced(f"user {name} {is_now} run {' '.join(probe.command)!r} and {should}")
