"""Answers liveness and readiness probes of Kubernetes, and scrapes of Prometheus.

They are answered in a thread with an event loop of its own: an agent with a busy loop is late, not dead.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Self

from agentstream.errors import AgentStreamError, SettingsError
from agentstream.telemetry import metrics
from agentstream.threads import Thread, wait

BLOCKED_LIMIT = 300.0
"""Seconds without a turn of the event loop after which an agent counts as stuck: other consumers have claimed
its messages by then, so its pod is restarted."""

_BEAT = 5.0
# The same while the server cannot be used.
_BEAT_IN_TROUBLE = 1.0
# Seconds for which a client may take to send its request.
_PATIENCE = 2.0
_PHRASES = {200: "OK", 404: "Not Found", 500: "Internal Server Error", 503: "Service Unavailable"}
_TEXT = "text/plain; charset=utf-8"

_log = logging.getLogger("agentstream")
_lock = threading.Lock()
_listening: dict[int, _Listener] = {}


class Health:
    """Answers probes of one agent while it is entered.

    Agents of one process that name the same port share it; a probe succeeds if it does for each of them.

    Args:
        agent: name of the agent.
        port: where `GET /livez`, `/readyz` and `/metrics` are answered, on all interfaces.
        ping: sends a command to the server.
        why_not: why the agent takes no messages; empty if it does.
    """

    def __init__(
        self, agent: str, port: int, ping: Callable[[], Awaitable[Any]], why_not: Callable[[], str]
    ) -> None:
        self._agent = agent
        self._port = port
        self._ping = ping
        self._why_not = why_not
        self._failures = "is not connected yet"
        self._turned = 0.0
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Starts to answer probes.

        Raises:
            SettingsError: the port cannot be listened on.
        """
        self._turned = time.monotonic()
        with _lock:
            if self._port in _listening:
                _listening[self._port].agents += (self,)
            else:
                _listening[self._port] = _Listener(self._port, self)
        self._beating = asyncio.create_task(self._beat(), name=f"health {self._agent}")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops answering; the last agent of a port closes it."""
        with _lock:
            listener = _listening[self._port]
            others = tuple(agent for agent in listener.agents if agent is not self)
            if others:
                listener.agents = others
            else:
                del _listening[self._port]
                listener.close()
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait({self._beating})

    def stuck(self) -> str:
        """The reason for which the agent is not alive; empty if it is."""
        silent = time.monotonic() - self._turned
        if silent < BLOCKED_LIMIT:
            return ""
        return f"{self._agent}: its event loop has been blocked for {silent:.0f} s"

    def unready(self) -> str:
        """The reason for which the agent is not ready; empty if it is."""
        why = self._why_not() or self._failures
        return self.stuck() or (why and f"{self._agent} {why}")

    async def _beat(self) -> None:
        """Notes when the loop turns, and whether the server answers."""
        while True:
            self._turned = time.monotonic()
            try:
                await self._ping()
            except AgentStreamError as error:
                self._failures = f"cannot use its server: {error}"
            else:
                self._failures = ""
            await asyncio.sleep(_BEAT_IN_TROUBLE if self._failures else _BEAT)


class _Listener:
    """Answers on a port for all agents that name it, from a thread of its own.

    Attributes:
        agents: the agents.
    """

    def __init__(self, port: int, *agents: Health) -> None:
        self.agents = agents
        both = socket.has_dualstack_ipv6()
        try:
            self._socket = socket.create_server(
                ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
            )
        except OSError as error:
            raise SettingsError(
                f"AGENTSTREAM_HEALTH_PORT is {port}, where this process cannot listen: {error.strerror}; "
                "each process of a pod needs a port of its own, or none"
            ) from error
        self._end = asyncio.Event()
        self._serving: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        self._thread = Thread(self._run, f"agentstream health {port}")
        self._thread.start()

    def close(self) -> None:
        """Stops answering, and closes the port."""
        wait(self._serving).call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _run(self) -> None:
        # the default registry then has the metrics also where the program serves it elsewhere
        with contextlib.suppress(ImportError, ValueError):
            metrics.register()
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._serving.set_result(asyncio.get_running_loop())
        server = await asyncio.start_server(self._connected, sock=self._socket)
        await self._end.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(_PATIENCE):
                    writer.write(self._response(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        finally:
            writer.close()

    def _response(self, request: bytes) -> bytes:
        line, _, headers = request.decode("latin-1").partition("\r\n")
        method, path, *_ = [*line.split(" "), ""]
        path = path.partition("?")[0] if method in {"GET", "HEAD"} else ""
        if path == "/metrics":
            status, kind, body = _metrics(headers)
        else:
            status, text = self._answer(path)
            kind, body = _TEXT, f"{text}\n".encode()
        head = (
            f"HTTP/1.1 {status} {_PHRASES[status]}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == "HEAD" else body)

    def _answer(self, path: str) -> tuple[int, str]:
        if path == "/livez":
            wrong = [agent.stuck() for agent in self.agents]
        elif path == "/readyz":
            wrong = [agent.unready() for agent in self.agents]
        else:
            return 404, "ask for /livez, /readyz or /metrics"
        problems = "\n".join(filter(None, wrong))
        return (503, problems) if problems else (200, "ok")


def _metrics(headers: str) -> tuple[int, str, bytes]:
    """Status, content type and text for a scrape."""
    accept = ", ".join(
        value.strip()
        for name, _, value in (header.partition(":") for header in headers.split("\r\n"))
        if name.lower() == "accept"
    )
    try:
        return 200, *metrics.exposition(accept)
    except ImportError:
        return 404, _TEXT, b"metrics need prometheus_client: install agentstream[metrics]\n"
    except Exception:  # noqa: BLE001 - it may come from another collector
        _log.exception("cannot collect metrics")
        return 500, _TEXT, b"cannot collect metrics: see the log for the error\n"
