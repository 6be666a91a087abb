"""A private server with what a test declares on it, agents connected to it, and faults between them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from agentstream.agent import Agent
from agentstream.identity.settings import Settings
from agentstream.protocol import library
from agentstream.protocol.envelope import Message
from agentstream.protocol.routes import OFF, Consumes
from agentstream.testing.bindings import Bindings
from agentstream.testing.declared import NAMESPACE, DeclaredStream, schemas_of
from agentstream.testing.faults import Faults
from agentstream.testing.process import AgentProcess
from agentstream.testing.server import SandboxError, Server, embedded_binary
from agentstream.testing.topology import INSTALLATION, DeadLetter, Topology
from agentstream.testing.watchdog import Watchdog
from agentstream.transport.client import Argument, Client
from agentstream.transport.endpoint import Endpoint


class KillableAgent(Agent):
    """An agent of this process that can end as by SIGKILL; see `Sandbox.kill`."""

    async def crash(self) -> None:
        """Ends the agent without another command to the server, so that nothing is handed back."""
        self._renewal.close()
        await asyncio.gather(self._sender.close(), self._write.close(), self._control.close())
        for consumption in self._consumptions:
            consumption.cancel_workers()
        await self.__aexit__(None, None, None)


class Sandbox:
    """A real server of a test's own, as an asynchronous context manager.

    It listens on the loopback interface and ends with the context, also when the test process is killed.
    Streams and groups are declared by the test, in place of an operator's resources; every agent has all
    rights.

    Args:
        binary: a server's program, if not the embedded Valkey of `agentstream[testing]`.

    Attributes:
        faults: what is between the agents and the server.
        server: the server process.
    """

    faults: Faults
    server: Server

    def __init__(self, *, binary: str | Path | None = None) -> None:
        self._binary = binary
        self._open = contextlib.AsyncExitStack()
        self._every_faults: list[Faults] = []
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Self:
        """The sandbox, with a server that runs.

        Raises:
            SandboxError: there is no server for this platform, or it does not start.
        """
        async with contextlib.AsyncExitStack() as opening:
            binary = embedded_binary() if self._binary is None else Path(self._binary)
            self._directory = Path(tempfile.mkdtemp(prefix="agentstream-"))
            opening.callback(shutil.rmtree, self._directory, ignore_errors=True)
            self._bindings = Bindings(self._directory)
            self._watchdog = Watchdog(self._directory)
            opening.callback(self._watchdog.close)
            self.server = Server(binary, self._directory, self._watchdog)
            opening.callback(self.server.kill)
            self.server.start()
            client = Client(lambda: Endpoint(self.server.url), name="agentstream:sandbox")
            opening.push_async_callback(client.close)
            await library.load(client.call)
            self._topology = Topology(self._call)
            self._client, self._loop = client, asyncio.get_running_loop()
            self._open = opening.pop_all()
        self.faults = self.more_faults()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends all faults, closes the agents, and ends the processes and the server."""
        # agents hand back their messages when they close
        self.heal()
        await self._open.aclose()

    async def declare_stream(
        self,
        name: str,
        *,
        producers: Iterable[str] = (),
        broadcast: bool = False,
        signed: Literal["Warn", "Require"] | None = None,
        contracts: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        """Makes a stream, as an AgentStream does.

        Args:
            name: the stream's.
            producers: agents that may add to it.
            broadcast: whether every group is to acknowledge what is added.
            signed: what becomes of messages without a valid signature; every agent gets the key.
            contracts: what payloads must be, each as in `spec.contracts` of an AgentStream:
                `{"type": "event", "version": 1, "schema": {…}}`.

        Raises:
            ValueError: a contract is none.
            SettingsError: there are contracts, and what checks them is not installed.
        """
        schemas = schemas_of(contracts)
        if signed is not None:
            self._bindings.sign(name)
        stream = DeclaredStream(name, tuple(producers), broadcast, signed or OFF, schemas)
        await self._topology.declare_stream(stream)

    async def declare_group(
        self,
        stream: str,
        *,
        agent: str,
        group: str | None = None,
        lease: float = 10.0,
        deadline: float | None = None,
        max_deliveries: int = 5,
        backoff: float = 0.01,
        backoff_factor: float = 2.0,
        backoff_max: float = 1.0,
        deliver_all: bool = False,
        dead_letters: bool = True,
        start: str = "0",
    ) -> None:
        """Makes a group, as a ConsumerGroup does; only that retries come soon, so that tests are short.

        Args:
            stream: name of the stream.
            agent: the agent that consumes the group.
            group: the group's name, if not the agent's.
            lease: seconds that a delivered message stays with a process that does not renew.
            deadline: seconds that a handler may take; None for as long as it likes.
            max_deliveries: attempts after which a message becomes a dead letter.
            backoff: seconds before the second attempt.
            backoff_factor: by what the delay grows with every further attempt.
            backoff_max: the longest delay in seconds.
            deliver_all: deliver what is addressed to others, too.
            dead_letters: whether the group gives messages up at all.
            start: id of the entry after which it begins; `$` for what is added from now on.

        Raises:
            LookupError: the stream is not declared.
        """
        declared = self._topology.stream(stream)
        consumes = Consumes(
            stream,
            declared.key,
            group or agent,
            broadcast=declared.broadcast,
            deliver_all=deliver_all,
            lease=round(lease * 1000),
            max_deliveries=max_deliveries,
            backoff_initial=round(backoff * 1000),
            backoff_factor=backoff_factor,
            backoff_max=round(backoff_max * 1000),
            dead_letters=dead_letters,
            deadline=round((deadline or 0) * 1000),
        )
        await self._topology.declare_group(consumes, agent, start)

    def agent(self, name: str, *, pod: str | None = None, through: Faults | None = None) -> Agent:
        """An agent that is connected through the faults, and closed with the sandbox unless it is before.

        Args:
            name: the agent's.
            pod: its pod, if it is to take over what an earlier agent of the same pod left.
            through: faults of its own, from `more_faults`.
        """
        agent = KillableAgent.connect(self.settings(name, pod=pod, through=through))
        self._open.push_async_exit(agent)
        return agent

    def settings(self, name: str, *, pod: str | None = None, through: Faults | None = None) -> Settings:
        """The settings with which `Agent.connect` makes this agent; arguments as in `agent`."""
        return Settings(
            namespace=NAMESPACE,
            agent=name,
            source=Endpoint((through or self.faults).url),
            pod=pod or self._pod(name),
            installation=INSTALLATION,
            signing_keys=self._bindings.keys,
        )

    def more_faults(self) -> Faults:
        """Another way to the server, with faults of its own: for agents that are to be cut off alone."""
        faults = self._open.enter_context(Faults(self.server.port))
        self._every_faults.append(faults)
        return faults

    def heal(self) -> None:
        """Ends all faults, those of `more_faults` included."""
        for faults in self._every_faults:
            faults.heal()

    def environ(self, agent: str, *, pod: str | None = None, through: Faults | None = None) -> dict[str, str]:
        """The variables with which `Agent.from_env` makes this agent; arguments as in `agent`."""
        return {
            "AGENTSTREAM_BINDING": str(self._bindings.make((through or self.faults).url)),
            "AGENTSTREAM_NAMESPACE": NAMESPACE,
            "AGENTSTREAM_INSTALLATION": INSTALLATION,
            "AGENTSTREAM_AGENT": agent,
            "AGENTSTREAM_POD": pod or self._pod(agent),
        }

    def process(
        self,
        program: str | Path,
        *arguments: str,
        agent: str,
        pod: str | None = None,
        through: Faults | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> AgentProcess:
        """Starts a Python program whose `Agent.from_env` makes this agent. It ends with the sandbox.

        Args:
            program: a file that ends in `.py`, or the name of a module.
            arguments: of the program.
            agent: the agent's name.
            pod: as in `agent`.
            through: as in `agent`.
            environ: further variables.
        """
        is_file = str(program).endswith(".py")
        command = (str(program), *arguments) if is_file else ("-m", str(program), *arguments)
        variables = {**os.environ, "PYTHONUNBUFFERED": "1", **self.environ(agent, pod=pod, through=through)}
        log = self._directory / f"process-{next(self._numbers)}.log"
        process = AgentProcess(command, {**variables, **(environ or {})}, log, self._watchdog)
        self._open.callback(process.kill)
        return process

    async def kill(self, agent: Agent) -> None:
        """Ends an agent of this process as SIGKILL would.

        Its handlers are cancelled where they are, its connections break, and nothing is handed back: its
        messages stay pending until the lease runs out, or an agent of the same pod recovers them.

        Raises:
            TypeError: the agent was not made by `agent`.
        """
        if not isinstance(agent, KillableAgent):
            raise TypeError(f"{agent.name} cannot be killed: make the agent with Sandbox.agent")
        await agent.crash()

    async def settled(self, stream: str, *, group: str | None = None, timeout: float = 10.0) -> None:
        """Waits until nothing of a stream is undelivered, pending, delayed or retrying.

        Args:
            stream: name of the stream.
            group: the only group to look at; all if None.
            timeout: for how many seconds to wait.

        Raises:
            TimeoutError: something is left; the message says what.
            LookupError: no such stream or group is declared.
        """
        await self._topology.settled(stream, group, timeout)

    async def messages(self, stream: str, *, at_least: int = 0, timeout: float = 10.0) -> list[Message]:
        """All messages that were sent to a stream, oldest first.

        Args:
            stream: name of the stream.
            at_least: how many to wait for.
            timeout: for how many seconds to wait.

        Raises:
            TimeoutError: there were fewer; the message says how many.
            LookupError: the stream is not declared.
        """
        return await self._topology.messages(stream, at_least, timeout)

    async def dead_letters(self, stream: str, *, group: str) -> list[DeadLetter]:
        """What a group gave up, oldest first.

        Raises:
            LookupError: the stream is not declared.
        """
        return await self._topology.dead_letters(stream, group)

    async def _call(self, *args: Argument) -> Any:
        if asyncio.get_running_loop() is not self._loop:
            # otherwise it would wait for ever
            raise SandboxError(
                "the sandbox is used in another event loop than it was opened in: "
                "give the test and the fixture the same loop scope"
            )
        return await self._client.call(*args)

    def _pod(self, agent: str) -> str:
        """A name that no other pod has."""
        return f"{agent}-{next(self._numbers)}"
