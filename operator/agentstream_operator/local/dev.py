"""`agentstream dev`: an embedded server, the reconcilers and the agents' processes, from start to summary."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agentstream.errors import AgentStreamError
from agentstream_operator.broker.broker import Broker
from agentstream_operator.local.bindings.bindings import BindingFiles
from agentstream_operator.local.bindings.signing import SigningFiles
from agentstream_operator.local.cluster import LocalCluster
from agentstream_operator.local.failure import LocalError, cannot
from agentstream_operator.local.manifests.catalog import Catalog
from agentstream_operator.local.manifests.watch import changes
from agentstream_operator.local.processes.processes import Output
from agentstream_operator.local.processes.reaper import Reaper
from agentstream_operator.local.screen.idle import IdleDetector
from agentstream_operator.local.screen.lines import Lines
from agentstream_operator.local.screen.summary import Summary, as_json, as_text, summarise
from agentstream_operator.local.server.binary import server_binary
from agentstream_operator.local.server.datadir import DataDirectory
from agentstream_operator.local.server.embedded import EmbeddedServer, pick_port
from agentstream_operator.local.server.valkey import OPERATOR, ValkeySettings, half_of_memory
from agentstream_operator.plan.observed import Gone
from agentstream_operator.reconcile.engine import Engine
from agentstream_operator.reconcile.report.view import View

INSTALLATION = "agentstream"
_LOOK_EVERY = 0.25

_ECHO = 0.5
"""Seconds within which a second signal is the first again, passed on by what runs us (`uv run`, make)."""


class Screen(Output, Protocol):
    """Where everything that happens is shown."""

    def show(self, view: View) -> None:
        """Shows the numbers."""
        ...

    def close(self) -> None:
        """Leaves the terminal as it was."""
        ...


@dataclass(frozen=True, slots=True)
class DevOptions:
    """What the person asked for.

    Attributes:
        paths: files and directories of manifests.
        data: the data directory.
        port: of the server; None for any free one.
        seconds: after which to end; None for never.
        until_idle: seconds of idleness after some work, after which to end; None for never.
        json: whether the summary is to be JSON on standard output, and all else on standard error.
    """

    paths: Sequence[Path]
    data: Path
    port: int | None
    seconds: float | None
    until_idle: float | None
    json: bool


class Interrupted(Exception):  # noqa: N818 - not an error
    """The person asked twice to stop."""


def run(options: DevOptions) -> int:
    """Runs until asked to stop, and prints the summary.

    Returns:
        The exit code: 0, or 1 if a message was lost, or 130 if there was no time to end in order.

    Raises:
        LocalError: something that the person can put right prevents it.
    """
    with DataDirectory(options.data) as data:
        try:
            summary = asyncio.run(_Run(options, data).run())
        except Interrupted:
            return 130
    try:
        sys.stdout.write(f"{as_json(summary) if options.json else as_text(summary)}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # nobody reads; the interpreter, which tries once more when it ends, must not fail for it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if summary.total.lost else 0


class _Relay(logging.Handler):
    """Shows what the reconcilers log as lines; a traceback would help nobody who runs `agentstream dev`."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a record."""
        error = record.exc_info[1] if record.exc_info else None
        reason = f": {type(error).__name__}: {error}" if error is not None else ""
        self._output.say(f"{record.levelname.lower()}: {record.getMessage()}{reason}")


@contextmanager
def relayed_logs(output: Output) -> Iterator[None]:
    """Shows what the reconcilers log, while it lasts."""
    handler = _Relay(output)
    log = logging.getLogger("agentstream_operator")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _Run:
    """One run: what is started is ended in the opposite order."""

    def __init__(self, options: DevOptions, data: DataDirectory) -> None:
        self._options = options
        self._data = data
        self._stop = asyncio.Event()
        self._main: asyncio.Task[Summary] | None = None
        self._screen = _screen(options, self._stop.set)
        self._asked: float | None = None
        self._impatient = False

    async def run(self) -> Summary:
        self._main = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._interrupt)
        try:
            with relayed_logs(self._screen):
                return await self._serve()
        except asyncio.CancelledError:
            if self._impatient:
                raise Interrupted from None
            raise
        finally:
            self._screen.close()

    async def _serve(self) -> Summary:
        catalog = Catalog(self._options.paths, records=self._data.resources, output=self._screen)
        manifests = catalog.read()
        if manifests.problems:
            raise LocalError(*manifests.problems)
        catalog.take_up(manifests)
        port = pick_port(self._options.port)
        bindings = BindingFiles(self._data.bindings, port=port, installation=INSTALLATION)
        try:
            bindings.relocate()
        except OSError as error:
            raise cannot(f"write to {self._data.shown}", error) from error
        since = asyncio.get_running_loop().time()
        async with self._server(port) as (reaper, url):
            self._screen.say(f"valkey on 127.0.0.1:{port}, data in {self._data.shown}")
            broker = await _connect(url)
            try:
                async with asyncio.TaskGroup() as tasks:
                    cluster = LocalCluster(
                        bindings=bindings,
                        signing=SigningFiles(self._data.signing),
                        resources=catalog,
                        tasks=tasks,
                        output=self._screen,
                        reaper=reaper,
                        # there is an engine before there is a process
                        ended=lambda group, process: engine.departed(group, _ended_now(process)),
                    )
                    # everything here is of one person: any key may be claimed
                    engine = Engine(broker, cluster, installation=INSTALLATION, allowed_keys=("*",))
                    catalog.attach(engine)
                    engine.listed()
                    reconciling = [
                        tasks.create_task(engine.run(), name="engine"),
                        tasks.create_task(self._watch(catalog), name="watch manifests"),
                    ]
                    await self._look_on(engine, since)
                    self._screen.say("stopping the agents (Ctrl-C again to kill them)")
                    # first who would start others in place of those that end
                    for task in reconciling:
                        task.cancel()
                    await asyncio.gather(*reconciling, return_exceptions=True)
                    await cluster.close()
                    view = await engine.summary()
            finally:
                await broker.close()
        return summarise(view, asyncio.get_running_loop().time() - since)

    @asynccontextmanager
    async def _server(self, port: int) -> AsyncIterator[tuple[Reaper, str]]:
        """The embedded server, watched over, and what ends everything if we cannot; yields its URL, too."""
        password = self._data.password()
        settings = ValkeySettings(server_binary(), self._data.path, port, half_of_memory(), password)
        reaper = Reaper()
        server = EmbeddedServer(
            settings, shown=self._data.shown, lock=self._data.lock, reaper=reaper, say=self._screen.say
        )
        try:
            await server.start()
            supervision = asyncio.create_task(server.supervise(), name="watch over valkey")
            # it ends only by being cancelled, or for a reason that must come to light
            supervision.add_done_callback(lambda _: self._stop.set())
            try:
                yield reaper, f"redis://{OPERATOR}:{password}@127.0.0.1:{port}"
            finally:
                supervision.cancel()
                with suppress(asyncio.CancelledError):
                    await supervision
        finally:
            await server.stop()
            reaper.close()

    async def _look_on(self, engine: Engine, since: float) -> None:
        """Shows what happens until it is time to stop."""
        loop, options = asyncio.get_running_loop(), self._options
        quiet = IdleDetector(options.until_idle) if options.until_idle is not None else None
        end = loop.time() + options.seconds if options.seconds is not None else None
        complete = False
        while not self._stop.is_set():
            view = engine.view()
            self._screen.show(view)
            if not complete and all(s.ready for s in view.streams) and all(g.ready for g in view.groups):
                complete = True
                self._screen.say(f"everything is ready after {loop.time() - since:.2f} s")
            if end is not None and loop.time() >= end:
                break
            if quiet is not None and quiet.reached(view, loop.time()):
                break
            try:
                await asyncio.wait_for(self._stop.wait(), _LOOK_EVERY)
            except TimeoutError:
                continue

    async def _watch(self, catalog: Catalog) -> None:
        """Takes up changes of the manifests; what is wrong with them changes nothing."""
        async for _ in changes(self._options.paths):
            manifests = catalog.read()
            if manifests.problems:
                for problem in manifests.problems:
                    self._screen.say(f"error: {problem}")
                self._screen.say("the manifests are not taken up; what was declared before stays")
                continue
            try:
                catalog.take_up(manifests)
            except LocalError as error:
                self._screen.say(f"error: {error}")

    def _interrupt(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._asked is None:
            self._asked = now
            self._stop.set()
        elif now - self._asked > _ECHO and self._main is not None and not self._impatient:
            self._impatient = True
            self._main.cancel()


def _ended_now(process: str) -> Gone:
    """The process of a place, whose next one is about to start."""
    return Gone(process, time.time_ns() // 1_000_000)


async def _connect(url: str) -> Broker:
    try:
        return await Broker.connect(url, installation=INSTALLATION)
    except AgentStreamError as error:
        raise LocalError(f"valkey does not answer: {error}") from error


def _screen(options: DevOptions, closed: Callable[[], None]) -> Screen:
    file = sys.stderr if options.json else sys.stdout
    if file.isatty():
        from rich.console import Console  # noqa: PLC0415 - not needed where there is no terminal

        from agentstream_operator.local.screen.table import LiveTable  # noqa: PLC0415

        return LiveTable(Console(file=file, highlight=False, soft_wrap=True))
    return Lines(file, closed=closed, clock=time.monotonic)
