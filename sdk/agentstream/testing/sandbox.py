"""The sandbox: a private server, streams and groups on it, agents, and faults between agents and server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from agentstream.agent import Agent
from agentstream.identity.settings import Settings
from agentstream.protocol import library
from agentstream.testing.faults import Faults
from agentstream.testing.process import AgentProcess, Watchdog
from agentstream.testing.server import Bindings, SandboxError, Server, embedded_binary
from agentstream.testing.topology import INSTALLATION, NAMESPACE, Topology
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
        await self.end()

    async def end(self) -> None:
        """Leaves the agent without waiting for handlers, of which a test may have some that never end."""
        self._runs.abandon()
        await self.__aexit__(None, None, None)


class Sandbox(Topology):
    """A private, real server for one test, as an asynchronous context manager.

    It listens on the loopback interface and ends with the context, also when the test process is killed.
    The test declares streams and groups, in place of the operator; every agent has all rights.

    Args:
        binary: path of a server's program, if not the embedded Valkey of `agentstream[testing]`.

    Attributes:
        faults: the network between the agents and the server.
        server: the server process.
    """

    faults: Faults
    server: Server

    def __init__(self, *, binary: str | Path | None = None) -> None:
        super().__init__()
        self._binary = binary
        self._open = contextlib.AsyncExitStack()
        self._every_faults: list[Faults] = []
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Self:
        """Starts the server.

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
            self._client, self._loop = client, asyncio.get_running_loop()
            self._open = opening.pop_all()
        self.faults = self.more_faults()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Ends all faults, closes the agents, and ends the processes and the server."""
        # agents hand back their messages when they close
        self.heal()
        await self._open.aclose()

    def agent(self, name: str, *, pod: str | None = None, through: Faults | None = None) -> Agent:
        """Makes an agent that connects through the faults, and is closed with the sandbox at the latest.

        Args:
            name: name of the agent.
            pod: name of its pod; an agent recovers the messages that an earlier one of the same pod left.
            through: faults of its own, from `more_faults`.
        """
        agent = KillableAgent.connect(self.settings(name, pod=pod, through=through))
        self._open.push_async_callback(agent.end)
        return agent

    def settings(self, name: str, *, pod: str | None = None, through: Faults | None = None) -> Settings:
        """Returns the settings with which `Agent.connect` makes this agent; arguments as in `agent`."""
        return Settings(
            namespace=NAMESPACE,
            agent=name,
            source=Endpoint((through or self.faults).url),
            pod=pod or self._pod(name),
            installation=INSTALLATION,
            signing=self._bindings.signing,
        )

    def more_faults(self) -> Faults:
        """Opens another path to the server, with faults of its own, to cut off single agents."""
        faults = self._open.enter_context(Faults(self.server.port))
        self._every_faults.append(faults)
        return faults

    def heal(self) -> None:
        """Ends all faults, those of `more_faults` included."""
        for faults in self._every_faults:
            faults.heal()

    def environ(self, agent: str, *, pod: str | None = None, through: Faults | None = None) -> dict[str, str]:
        """Returns the variables with which `Agent.from_env` makes this agent; arguments as in `agent`."""
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
            agent: name of the agent.
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

    async def _call(self, *args: Argument) -> Any:
        if asyncio.get_running_loop() is not self._loop:
            # the reply would never arrive
            raise SandboxError(
                "the sandbox is used in another event loop than it was opened in: "
                "give the test and the fixture the same loop scope"
            )
        return await self._client.call(*args)

    def _pod(self, agent: str) -> str:
        """Returns a name that no other pod has."""
        return f"{agent}-{next(self._numbers)}"
