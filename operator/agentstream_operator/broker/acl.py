"""The agents' ACL users: set at once and whole, verified, saved, and watched for drift.

Only users whose name begins with the installation are ever looked at or touched. Passwords arrive here as
hashes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Mapping

from agentstream.errors import AgentStreamError
from agentstream_operator.broker.connection import BrokerClient
from agentstream_operator.broker.server import probe_user
from agentstream_operator.plan.actions import Probe, SetUser

_log = logging.getLogger(__name__)
_NO_FILE = "not configured to use an ACL file"
_LONGEST_DELAY = 60.0


class AccessNotEnforced(AgentStreamError):  # noqa: N818 - named like the SDK's errors, after what is wrong
    """The server lets a user do what its rules are to deny, or denies what they are to allow."""


class Users:
    """The users of one installation on one server.

    Args:
        connection: to the server, with the right to change users.
        installation: what their names begin with.
        save_delay: seconds after a change until users are saved, so that many changes are saved once.
    """

    def __init__(self, connection: BrokerClient, installation: str, *, save_delay: float = 1.0) -> None:
        self._connection = connection
        self._prefix = f"{installation}."
        self._probe_user = probe_user(installation)
        self._save_delay = save_delay
        self._unsaved = False
        self._closing = asyncio.Event()
        self._saving: asyncio.Task[None] | None = None
        self._one_list = asyncio.Lock()
        self._next_list: asyncio.Task[Mapping[str, str]] | None = None
        self._lists: set[asyncio.Task[Mapping[str, str]]] = set()

    async def set(self, action: SetUser) -> str:
        """Sets a user, verifies it, and returns the fingerprint of its rules.

        Raises:
            AccessNotEnforced: a probe failed; the user is set.
            AgentStreamError: as `Wire.call`.
        """
        self._check_ours(action.name)
        hashes = (f"#{digest}" for digest in action.password_hashes)
        call = self._connection.call
        try:
            _, *verdicts = await asyncio.gather(
                call("ACL", "SETUSER", action.name, *action.rules, *hashes),
                *(call("ACL", "DRYRUN", action.name, *probe.command) for probe in action.probes),
            )
        finally:
            self._save_soon()
        for probe, verdict in zip(action.probes, verdicts, strict=True):
            _check(action.name, probe, verdict)
        fingerprint = (await self._listed_from_now()).get(action.name)
        if fingerprint is None:
            raise AccessNotEnforced(f"user {action.name} vanished as soon as it was set")
        return fingerprint

    async def delete(self, name: str) -> bool:
        """Deletes a user, whose connections the server then closes. Returns whether there was one.

        Raises:
            AgentStreamError: as `Wire.call`.
        """
        self._check_ours(name)
        deleted = await self._connection.call("ACL", "DELUSER", name)
        self._save_soon()
        return bool(deleted)

    async def fingerprints(self) -> Mapping[str, str]:
        """The installation's users, and for each a fingerprint that changes with its rules or passwords.

        Raises:
            AgentStreamError: as `Wire.call`.
        """
        return await self._listed_from_now()

    async def close(self) -> None:
        """Saves what is to be saved, if the server can be reached, and ends what is under way."""
        self._closing.set()
        if self._saving is not None:
            await self._saving
        lists = list(self._lists)
        for task in lists:
            task.cancel()
        await asyncio.gather(*lists, return_exceptions=True)

    def _check_ours(self, name: str) -> None:
        if not name.startswith(self._prefix):
            raise ValueError(f"user {name} does not belong to this installation: {self._prefix}")

    async def _listed_from_now(self) -> Mapping[str, str]:
        """The users as they are after this call; callers share a listing that has not been asked for yet."""
        if self._next_list is None:
            self._next_list = asyncio.create_task(self._list(), name="list users")
            self._lists.add(self._next_list)
            self._next_list.add_done_callback(self._lists.discard)
        return await asyncio.shield(self._next_list)

    async def _list(self) -> Mapping[str, str]:
        async with self._one_list:
            self._next_list = None
            lines = await self._connection.call("ACL", "LIST")
        start = f"user {self._prefix}".encode()
        users = {
            line.split(b" ", 2)[1].decode(): hashlib.blake2b(line, digest_size=16).hexdigest()
            for line in lines
            if line.startswith(start)
        }
        users.pop(self._probe_user, None)
        return users

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
        # what changes from here on needs another save
        self._unsaved = False
        try:
            await self._connection.call("ACL", "SAVE")
        except AgentStreamError as error:
            if _NO_FILE not in str(error):
                self._unsaved = True
                _log.warning("the server did not save its users: %s", error)


def _check(name: str, probe: Probe, verdict: bytes) -> None:
    allowed = verdict == b"OK"
    if allowed != probe.allowed:
        is_now, should = ("may", "must not") if allowed else ("may not", "must be able to")
        raise AccessNotEnforced(f"user {name} {is_now} run {' '.join(probe.command)!r} and {should}")
