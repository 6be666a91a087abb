"""The port to where resources live, over files and processes in place of an API server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from agentstream_operator.cluster.port import (
    Credentials,
    Event,
    Owner,
    Pods,
    SigningKeys,
    WorkloadSeen,
)
from agentstream_operator.local.bindings.bindings import BindingFiles
from agentstream_operator.local.bindings.signing import SigningFiles
from agentstream_operator.local.processes.commands import command_of
from agentstream_operator.local.processes.processes import Output
from agentstream_operator.local.processes.reaper import Reaper
from agentstream_operator.local.processes.workloads import Workload
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import AgentStreamStatus, ConsumerGroupStatus


class Resources(Protocol):
    """Who keeps the resources themselves."""

    def place(self, key: ResourceKey) -> str:
        """Where the resource is declared, for a message."""
        ...

    def folder(self, key: ResourceKey) -> Path:
        """The directory of the file that declares the resource."""
        ...

    def set_status(self, key: ResourceKey, status: AgentStreamStatus | ConsumerGroupStatus) -> None:
        """The status changed."""
        ...

    def set_finalizer(self, key: ResourceKey, *, present: bool) -> None:
        """The resource is to go only when the finalizer has gone, or may go now."""
        ...

    def record(self, event: Event) -> None:
        """Something happened to a resource."""
        ...


class LocalCluster:
    """Bindings instead of Secrets, processes instead of Deployments.

    Args:
        bindings: the agents' bindings.
        signing: the keys of signed streams.
        resources: who keeps the resources.
        tasks: runs the processes.
        output: where lines for the person go.
        reaper: ends processes if we cannot.
        ended: called with group and process name after a process has ended.
    """

    def __init__(
        self,
        *,
        bindings: BindingFiles,
        signing: SigningFiles,
        resources: Resources,
        tasks: asyncio.TaskGroup,
        output: Output,
        reaper: Reaper,
        ended: Callable[[ResourceKey, str], Awaitable[None]],
    ) -> None:
        self._bindings = bindings
        self._signing = signing
        self._resources = resources
        self._tasks = tasks
        self._output = output
        self._reaper = reaper
        self._ended = ended
        self._workloads: dict[ResourceKey, Workload] = {}
        self._complaints: dict[ResourceKey, str] = {}
        self._deleted: set[ResourceKey] = set()

    async def credentials(self, namespace: str, agent: str) -> Credentials | None:
        """The agent's binding, if there is one."""
        return self._bindings.read(namespace, agent)

    async def users(self) -> Collection[str]:
        """Names of the users for whom there is a binding."""
        return self._bindings.users()

    async def apply_credentials(self, credentials: Credentials, owners: tuple[Owner, ...]) -> None:
        """Writes the agent's binding."""
        del owners  # nothing collects bindings but `delete_credentials`
        self._bindings.write(credentials)

    async def delete_credentials(self, namespace: str, agent: str) -> None:
        """Removes the agent's binding."""
        self._bindings.delete(namespace, agent)

    async def signing_keys(self, stream: ResourceKey) -> SigningKeys | None:
        """The keys of a stream, if there are any."""
        return self._signing.read(stream)

    async def apply_signing_keys(self, keys: SigningKeys, owner: Owner) -> None:
        """Writes the keys of a stream."""
        del owner  # nothing collects them
        self._signing.write(keys)

    async def workload(self, group: ConsumerGroup) -> WorkloadSeen | None:
        """The processes of a group, if they were ever applied."""
        key = group.key
        return self._workloads[key].seen if key in self._workloads.keys() - self._deleted else None

    async def pods(self, group: ConsumerGroup) -> Pods | None:
        """Nothing: each process that ends is told of."""
        del group
        return None

    async def apply_workload(self, group: ConsumerGroup, replicas: int) -> None:
        """Runs that many processes of the group's command."""
        key = group.key
        binding = self._bindings.directory(key.namespace, group.agent_name)
        command = command_of(group, binding, self._resources.folder(key), os.environ)
        if command is None:
            self._complain(key, "the template has no command, and its image is not run here")
            await self.delete_workload(key)
            return
        self._complain(key, command.problem)
        workload = self._workloads.get(key)
        if workload is None:
            workload = self._workloads[key] = Workload(
                key.name,
                tasks=self._tasks,
                output=self._output,
                reaper=self._reaper,
                ended=partial(self._ended, key),
            )
        self._deleted.discard(key)
        workload.apply(command, replicas)

    async def delete_workload(self, group: ResourceKey) -> None:
        """Ends the processes of a group."""
        if group in self._workloads:
            self._workloads[group].retire()
            # it is still known: if the group comes back, the names of those that are ending are taken
            self._deleted.add(group)

    async def delete_autoscaler(self, group: ResourceKey) -> None:
        """Nothing: there are none here, and mode HPA is as Direct."""

    async def rank_pods(self, group: ConsumerGroup, held: Mapping[str, int]) -> None:
        """Lets processes that hold less end first."""
        if group.key in self._workloads:
            self._workloads[group.key].rank(held)

    async def write_status(self, about: Owner, status: AgentStreamStatus | ConsumerGroupStatus) -> None:
        """Shows a status that changed."""
        self._resources.set_status(about.key, status)

    async def set_finalizer(self, about: Owner, *, present: bool) -> None:
        """Keeps a resource that is removed from its file until what it stands for is gone, or lets it go."""
        self._resources.set_finalizer(about.key, present=present)

    async def emit(self, event: Event) -> None:
        """Shows an event."""
        self._resources.record(event)

    async def close(self) -> None:
        """Lets all processes end in order; returns when the last one has ended."""
        for workload in self._workloads.values():
            workload.retire()
        await asyncio.gather(*(workload.empty() for workload in self._workloads.values()))

    def _complain(self, key: ResourceKey, problem: str | None) -> None:
        if problem is not None and self._complaints.get(key) != problem:
            self._output.say(f"error: {self._resources.place(key)}: {key}: {problem}")
        if problem is None:
            self._complaints.pop(key, None)
        else:
            self._complaints[key] = problem
