"""`agentstream dev`: runs the embedded server, the reconcilers and the agents, up to the summary."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from agentstream.errors import AgentStreamError
from agentstream_operator.broker.broker import Broker
from agentstream_operator.local.api import LocalApi, serving_api
from agentstream_operator.local.bindings import BindingFiles, SigningFiles
from agentstream_operator.local.cluster import LocalCluster
from agentstream_operator.local.manifests.catalog import Catalog
from agentstream_operator.local.processes.reaper import Reaper
from agentstream_operator.local.processes.workloads import ProcessHost
from agentstream_operator.local.replays import LocalReplays
from agentstream_operator.local.screen.advice import DeadLetterNotices, after_ready, after_the_end, where
from agentstream_operator.local.screen.keys import open_browser, reading_keys
from agentstream_operator.local.screen.output import LocalError, cannot, open_screen, relayed_logs
from agentstream_operator.local.screen.summary import Summary, as_json, as_text, summarise
from agentstream_operator.local.server.datadir import DataDirectory
from agentstream_operator.local.server.embedded import EmbeddedServer, pick_port
from agentstream_operator.local.server.valkey import OPERATOR, ValkeySettings, half_of_memory, server_binary
from agentstream_operator.plan.observed import Gone
from agentstream_operator.reconcile.engine import Engine
from agentstream_operator.reconcile.report.view import GroupView, StreamView, View
from agentstream_operator.reconcile.state.state import EngineOptions

INSTALLATION = "agentstream"
HOPELESS = 10.0
"""Seconds without any movement after which `--until-idle` gives up on what is broken."""

_REFRESH = 0.25

_ECHO = 0.5
"""Seconds within which a second signal is the first one, forwarded by a parent such as `uv run` or make."""


@dataclass(frozen=True, slots=True)
class DevOptions:
    """Options of the command line, which `agentstream dev --help` describes; times in seconds."""

    paths: Sequence[Path]
    data: Path
    port: int | None
    api_port: int | None
    seconds: float | None
    until_idle: float | None
    json: bool
    reload: bool
    verbose: bool


def run(options: DevOptions) -> int:
    """Runs until asked to stop, and prints the summary.

    Returns:
        The exit code: 0; 1 if a message was lost or became a dead letter, or idleness was not reached;
        130 if a second Ctrl-C killed the agents.

    Raises:
        LocalError: the user's input or the state of the machine prevents it.
    """
    with DataDirectory(options.data) as data:
        session = _Run(options, data)
        try:
            summary = asyncio.run(session.run())
        except asyncio.CancelledError:
            # a second Ctrl-C
            return 130
        except ExceptionGroup as group:
            # what ends the tasks of a run comes as a group
            mistakes = [error for error in group.exceptions if isinstance(error, LocalError)]
            if len(mistakes) < len(group.exceptions):
                raise
            raise LocalError(*(line for mistake in mistakes for line in mistake.lines)) from group
    try:
        sys.stdout.write(f"{as_json(summary) if options.json else as_text(summary)}\n")
        sys.stdout.flush()
        if (advice := after_the_end(summary)) is not None:
            print(advice, file=sys.stderr if options.json else sys.stdout, flush=True)
    except BrokenPipeError:
        # the interpreter flushes once more when it exits, which must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if summary.total.lost or summary.total.dead_lettered or session.failed else 0


@dataclass(slots=True)
class IdleDetector:
    """Detects that there was nothing to do for some seconds, after some messages were processed.

    Or that nothing will be: nothing moves, and something is broken.
    """

    seconds: float
    _since: float = field(init=False, default=0.0)
    _before: object = field(init=False, default=None)
    _unmoved_since: float = field(init=False, default=0.0)
    _unmoved: object = field(init=False, default=None)

    def reached(self, view: View, now: float) -> bool:
        """Tells whether everything has been idle for so long; `now` in seconds on a monotonic clock."""
        present = (
            tuple(stream.added for stream in view.streams),
            tuple(group.account for group in view.groups),
        )
        # while the server is unreachable, the numbers are those of before
        idle = view.reachable and all(group.backlog == 0 and group.delayed == 0 for group in view.groups)
        if present != self._before or not idle:
            self._before, self._since = present, now
            return False
        worked = any(g.account.acknowledged + g.account.dead > 0 for g in view.groups)
        return worked and now - self._since >= self.seconds

    def stuck(self, view: View, now: float) -> str | None:
        """Returns what is broken, once nothing has moved for `HOPELESS` seconds; None while there is hope."""
        present = tuple((g.backlog, g.pending, g.delayed, g.account) for g in view.groups)
        broken = _broken(view)
        if broken is None or present != self._unmoved:
            self._unmoved, self._unmoved_since = present, now
            return None
        return broken if now - self._unmoved_since >= max(self.seconds, HOPELESS) else None


def _broken(view: View) -> str | None:
    """Returns the first resource that does not work, and why; None while others may be at work."""
    working = any(group.pending and group.running and group.crashing is None for group in view.groups)
    if working or not view.reachable:
        return None
    resources: tuple[StreamView | GroupView, ...] = (*view.streams, *view.groups)
    for found in resources:
        if not found.ready:
            return f"{found.resource} is not ready: {found.reason}"
        if isinstance(found, GroupView) and found.crashing is not None:
            return f"the consumers of {found.resource} keep ending: {found.crashing}"
    return None


class _Run:
    """One run: what is started last is stopped first."""

    def __init__(self, options: DevOptions, data: DataDirectory) -> None:
        self._options = options
        self._data = data
        self._stop = asyncio.Event()
        self._main: asyncio.Task[Summary] | None = None
        self._screen = open_screen(sys.stderr if options.json else sys.stdout, self._stop.set)
        self._opening: asyncio.Task[None] | None = None
        self._interrupted_at: float | None = None
        self._killed = False
        self.failed = False  # whether it ended for a reason that the summary does not show

    async def run(self) -> Summary:
        self._main = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._interrupt)
        try:
            with relayed_logs(self._screen):
                return await self._serve()
        finally:
            self._screen.close()

    async def _serve(self) -> Summary:
        replays = LocalReplays(self._data.replays, output=self._screen)
        catalog = Catalog(
            self._options.paths, metadata=self._data.resources, replays=replays, output=self._screen
        )
        manifests = catalog.read()
        if manifests.problems:
            raise LocalError(*manifests.problems)
        catalog.apply(manifests)
        port = pick_port(self._options.port)
        bindings = BindingFiles(self._data.bindings, port=port, installation=INSTALLATION)
        try:
            bindings.relocate()
        except OSError as error:
            raise cannot(f"write to {self._data.shown}", error) from error
        since = asyncio.get_running_loop().time()
        async with self._server(port) as (reaper, url):
            self._screen.say(f"valkey on 127.0.0.1:{port}, data in {self._data.shown}")
            try:
                broker = await Broker.connect(url, installation=INSTALLATION)
            except AgentStreamError as error:
                raise LocalError(f"valkey does not answer: {error}") from error
            try:
                async with asyncio.TaskGroup() as tasks:
                    cluster = LocalCluster(
                        bindings,
                        SigningFiles(self._data.signing),
                        catalog,
                        replays,
                        ProcessHost(tasks, reaper, self._screen, self._options.verbose),
                        # the engine exists before the first process
                        ended=lambda group, process: engine.pod_gone(group, _gone_now(process)),
                    )
                    # everything here belongs to one user: any key may be claimed
                    engine = Engine(broker, cluster, EngineOptions(INSTALLATION, allowed_keys=("*",)))
                    catalog.attach(engine)
                    engine.listed()
                    reconciling = [
                        tasks.create_task(engine.run(), name="engine"),
                        tasks.create_task(self._watch(catalog), name="watch manifests"),
                    ]
                    if self._options.reload:
                        reconciling.append(tasks.create_task(cluster.reload(), name="watch sources"))
                    await self._show(engine, broker, replays, since)
                    self._screen.say("stopping the agents (Ctrl-C again to kill them)")
                    # first the reconcilers, which would replace processes that end
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
        """Runs the reaper and the embedded server. Yields the reaper and the server's URL."""
        password = self._data.password()
        settings = ValkeySettings(server_binary(), self._data.path, port, half_of_memory(), password)
        reaper = Reaper()
        server = EmbeddedServer(
            settings, shown=self._data.shown, lock=self._data.lock, reaper=reaper, say=self._screen.say
        )
        try:
            await server.start()
            supervision = asyncio.create_task(server.supervise(), name="supervise valkey")
            # it ends only by cancellation or by a bug, which must not go unnoticed
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

    async def _show(self, engine: Engine, broker: Broker, replays: LocalReplays, since: float) -> None:
        """Serves the HTTP API, and shows the state until a signal, the end of the time, or idleness."""
        console = self._data.console
        async with serving_api(engine, broker, replays, console, self._options.api_port) as api:
            self._screen.say(f"api on {api.url} (token in {self._data.shown / console.name})")
            # who reads a log later must not get in
            link = api.link() if sys.stdout.isatty() else f"{api.url}/console"
            with reading_keys(sys.stdin, partial(self._pressed, api)) as can_type:
                self._screen.say(f"console on {link}{' (o opens it)' if can_type else ''}")
                await self._show_until_stopped(engine, since)

    def _pressed(self, api: LocalApi, key: str) -> None:
        if key == "o" and (self._opening is None or self._opening.done()):
            self._opening = asyncio.create_task(self._open(api.link()), name="open the console")

    async def _open(self, link: str) -> None:
        if not await open_browser(link):
            self._screen.say(f"no browser can be opened here; within a minute: {link}")

    async def _show_until_stopped(self, engine: Engine, since: float) -> None:
        """Shows the state until a signal, the end of the time, or idleness."""
        loop, options = asyncio.get_running_loop(), self._options
        idle = IdleDetector(options.until_idle) if options.until_idle is not None else None
        end = loop.time() + options.seconds if options.seconds is not None else None
        complete, notices = False, DeadLetterNotices()
        while not self._stop.is_set():
            view = engine.view()
            self._screen.show(view)
            if not complete and all(s.ready for s in view.streams) and all(g.ready for g in view.groups):
                complete = True
                self._screen.say(f"everything is ready after {loop.time() - since:.2f} s")
                if (place := where(options.data, Path.cwd())) is not None:
                    self._screen.say(after_ready(view, place))
            for line in notices.lines(view, loop.time()):
                self._screen.say(line)
            if idle is not None and idle.reached(view, loop.time()):
                break
            if idle is not None and (broken := idle.stuck(view, loop.time())) is not None:
                self._fail(f"nothing has moved for {max(idle.seconds, HOPELESS):g} s: {broken}")
                break
            if end is not None and loop.time() >= end:
                if idle is not None:
                    self._fail(f"not idle after {options.seconds:g} s")
                break
            try:
                await asyncio.wait_for(self._stop.wait(), _REFRESH)
            except TimeoutError:
                continue

    def _fail(self, why: str) -> None:
        self.failed = True
        self._screen.say(f"error: {why}")

    async def _watch(self, catalog: Catalog) -> None:
        """Applies changed manifests if they have no mistakes."""
        async for _ in catalog.changes():
            manifests = catalog.read()
            if manifests.problems:
                for problem in manifests.problems:
                    self._screen.say(f"error: {problem}")
                self._screen.say("the changed manifests are not applied; the resources stay as they were")
                continue
            try:
                catalog.apply(manifests)
            except LocalError as error:
                self._screen.say(f"error: {error}")

    def _interrupt(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._interrupted_at is None:
            self._interrupted_at = now
            self._stop.set()
        elif now - self._interrupted_at > _ECHO and self._main is not None and not self._killed:
            self._killed = True
            self._main.cancel()


def _gone_now(process: str) -> Gone:
    """Describes the end of a process whose successor has the same name."""
    return Gone(process, time.time_ns() // 1_000_000)
