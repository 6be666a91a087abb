"""Implements the cluster port with files and processes, in place of an API server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

from agentstream_operator.cluster.port import Credentials, Event, Owner, Pods, SigningKeys, WorkloadSeen
from agentstream_operator.local.bindings import BindingFiles, SigningFiles
from agentstream_operator.local.manifests.catalog import Catalog
from agentstream_operator.local.processes.commands import command_of
from agentstream_operator.local.processes.sources import SourceWatcher
from agentstream_operator.local.processes.workloads import ProcessHost, Workload
from agentstream_operator.local.replays import LocalReplays
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import NO_NAMESPACE, NamespaceSeen, ResourceKey
from agentstream_operator.resources.status import AnyStatus, StreamReplayStatus


@dataclass(slots=True, eq=False)
class LocalCluster:
    """Keeps bindings in place of Secrets, and runs processes in place of Deployments.

    Calls `ended` with group and process name after a process has ended.
    """

    bindings: BindingFiles
    signing: SigningFiles
    catalog: Catalog
    replays: LocalReplays
    host: ProcessHost
    ended: Callable[[ResourceKey, str], Awaitable[None]]
    _sources: SourceWatcher = field(init=False, default_factory=SourceWatcher)
    _workloads: dict[ResourceKey, Workload] = field(init=False, default_factory=dict)
    _problems: dict[ResourceKey, str] = field(init=False, default_factory=dict)
    _deleted: set[ResourceKey] = field(init=False, default_factory=set)

    async def namespace(self, name: str) -> NamespaceSeen:
        """Returns that namespaces are only names here."""
        del name
        return NO_NAMESPACE

    async def credentials(self, namespace: str, agent: str) -> Credentials | None:
        """Reads the agent's binding, if there is one."""
        return self.bindings.read(namespace, agent)

    async def users(self) -> Collection[str]:
        """Returns the names of the users who have a binding."""
        return self.bindings.users()

    async def apply_credentials(self, credentials: Credentials, owners: tuple[Owner, ...]) -> None:
        """Writes the agent's binding."""
        del owners  # there is no garbage collector here, only `delete_credentials`
        self.bindings.write(credentials)

    async def delete_credentials(self, namespace: str, agent: str) -> None:
        """Deletes the agent's binding."""
        self.bindings.delete(namespace, agent)

    async def signing_keys(self, stream: ResourceKey) -> SigningKeys | None:
        """Reads the keys of a stream, if there are any."""
        return self.signing.read(stream)

    async def apply_signing_keys(self, keys: SigningKeys, owner: Owner) -> None:
        """Writes the keys of a stream."""
        del owner  # there is no garbage collector here
        self.signing.write(keys)

    async def workload(self, group: ConsumerGroup) -> WorkloadSeen | None:
        """Returns the state of a group's processes, if any were applied or could not be."""
        key = group.key
        if key in self._workloads.keys() - self._deleted:
            return self._workloads[key].seen
        problem = self._problems.get(key)
        return WorkloadSeen(replicas=0, ready=0, crashing=problem) if problem is not None else None

    async def pods(self, group: ConsumerGroup) -> Pods | None:
        """Returns None: each process's end is reported when it happens."""
        del group
        return None

    async def apply_workload(self, group: ConsumerGroup, replicas: int) -> None:
        """Runs the group's command in this many processes."""
        key = group.key
        binding = self.bindings.directory(key.namespace, group.agent_name)
        command = command_of(group, binding, self.catalog.folder(key), os.environ, verbose=self.host.verbose)
        if command is None:
            self._report(key, "its first container has no command, and local mode does not run images")
            self._stop(key)
            return
        self._report(key, command.problem)
        workload = self._workloads.get(key)
        if workload is None:
            ended = partial(self.ended, key)
            workload = self._workloads[key] = Workload(key.name, self.host, ended)
        self._deleted.discard(key)
        workload.apply(command, replicas)
        self._sources.watch(frozenset().union(*(each.sources for each in self._workloads.values())))

    async def delete_workload(self, group: ResourceKey) -> None:
        """Stops the processes of a group."""
        self._problems.pop(group, None)
        self._stop(group)

    async def delete_autoscaler(self, group: ResourceKey) -> None:
        """Does nothing: there are no autoscalers here; mode HPA works as Direct."""

    async def set_deletion_costs(self, group: ConsumerGroup, held: Mapping[str, int]) -> None:
        """Makes processes that hold fewer messages stop first."""
        if group.key in self._workloads:
            self._workloads[group.key].set_deletion_costs(held)

    async def write_status(self, about: Owner, status: AnyStatus) -> None:
        """Shows a change of readiness, and keeps the status of a replay."""
        if isinstance(status, StreamReplayStatus):
            self.replays.set_status(about, status)
        else:
            self.catalog.set_status(about.key, status)

    async def delete_replay(self, about: Owner) -> None:
        """Deletes a replay."""
        self.replays.remove(about)

    async def set_finalizer(self, about: Owner, *, present: bool) -> None:
        """Keeps a resource that is no longer declared until its data is deleted, or releases it."""
        self.catalog.set_finalizer(about.key, present=present)

    async def emit(self, event: Event) -> None:
        """Shows an event."""
        self.catalog.record(event)

    async def reload(self) -> None:
        """Starts processes again whose source files change; returns only if they cannot be watched."""
        try:
            async for files in self._sources.changes():
                for key, workload in self._workloads.items():
                    changed = [f for f in files if any(f.is_relative_to(d) for d in workload.sources)]
                    if changed and workload.restart():
                        self.host.output.say(f"{key}: restarting: {min(changed).name} has changed")
        except (OSError, RuntimeError) as error:
            self.host.output.say(f"warning: changed code is not loaded: {error}")

    async def close(self) -> None:
        """Lets all processes end in order, and waits for the last one."""
        for workload in self._workloads.values():
            workload.stop()
        await asyncio.gather(*(workload.wait_stopped() for workload in self._workloads.values()))

    def _stop(self, group: ResourceKey) -> None:
        if group in self._workloads:
            self._workloads[group].stop()
            # kept: if the group is declared again, the names of processes that are ending are taken
            self._deleted.add(group)

    def _report(self, key: ResourceKey, problem: str | None) -> None:
        """Shows a new problem with a group's command."""
        if problem is None:
            self._problems.pop(key, None)
        elif self._problems.get(key) != problem:
            self._problems[key] = problem
            self.host.output.say(f"error: {self.catalog.place(key)}: {key}: {problem}")
