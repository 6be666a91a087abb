"""Only one operator of an installation acts at a time: the one that holds the Lease."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

_log = logging.getLogger(__name__)

LEASE = 8.0
"""Seconds after which a Lease that is not renewed is anybody's."""

_RENEW_DEADLINE = 6.0
_RETRY = 2.0


class Leader:
    """A candidate.

    Args:
        client: the official client.
        namespace: of the Lease.
        name: of the Lease.
        identity: who we are; the same after a restart in the same pod, which then goes on at once.
    """

    def __init__(self, client: ApiClient, namespace: str, name: str, identity: str) -> None:
        self._lock = LeaseLock(name, namespace, identity, client)
        self.leads = False

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[asyncio.Task[None]]:
        """Waits to become the leader, and gives the Lease back afterwards.

        Yields:
            A task that ends when the Lease is lost.
        """
        elected = asyncio.Event()

        async def led() -> None:
            elected.set()

        async def lost() -> None:
            _log.error("the Lease %s is lost", self._lock.name)

        election = LeaderElection(
            Config(
                self._lock,
                lease_duration=LEASE,
                renew_deadline=_RENEW_DEADLINE,
                retry_period=_RETRY,
                onstarted_leading=led,
                onstopped_leading=lost,
            )
        )
        running = asyncio.create_task(election.run(), name="hold the Lease")
        won = asyncio.create_task(elected.wait(), name="wait for the Lease")
        try:
            await asyncio.wait((running, won), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            self.leads = not running.done()
            yield running
        finally:
            self.leads = False
            held = won.done() and not won.cancelled() and not running.done()
            for task in (won, running):
                task.cancel()
            await asyncio.gather(won, running, return_exceptions=True)
            if held:
                await self._release()

    async def _release(self) -> None:
        """Lets the next one have the Lease at once."""
        lock = self._lock
        with contextlib.suppress(ApiException, OSError, asyncio.TimeoutError):
            lease = await lock.api_instance.read_namespaced_lease(lock.name, lock.namespace)
            if lease.spec is not None and lease.spec.holder_identity == lock.identity:
                lease.spec.holder_identity = None
                await lock.api_instance.replace_namespaced_lease(lock.name, lock.namespace, lease)
