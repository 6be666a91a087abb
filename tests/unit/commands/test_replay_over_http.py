"""The commands for replays, and the HTTP API that they ask: both as they are, over a connection."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from agentstream_operator.queue_api.app import application
from agentstream_operator.queue_api.documents import PreviewAnswer
from agentstream_operator.queue_api.events import LiveViews
from agentstream_operator.queue_api.sources import Sources
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.status import ReplayPhase, StreamReplayStatus
from agentstream_operator.resources.streamreplay import StreamReplay, StreamReplaySpec
from support.queue_api import Granted, MemoryReplays, TokensAreNames
from support.resources import a_group, a_stream
from support.waiting import until


class Previews:
    """Says that all letters match, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[StreamReplaySpec] = []

    async def preview(self, group: ConsumerGroup, spec: StreamReplaySpec) -> PreviewAnswer:
        self.asked.append(spec)
        return PreviewAnswer(
            namespace=group.metadata.namespace,
            group=group.metadata.name,
            source=spec.from_.source,
            total=3,
            scanned=3,
            more=False,
            matched=3,
            would_move=3,
            skipped={},
            seconds=0.06,
            sample=(),
            warnings=(),
        )


class Site:
    """The application behind a port, and a folder whose `agentstream dev` it pretends to be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.replays, self.previews = MemoryReplays(), Previews()
        index = ResourceIndex()
        index.put(a_stream())
        index.put(a_group())
        # what measures and browses is not asked for replays
        sources: dict[str, Any] = dict.fromkeys(each.name for each in fields(Sources))
        sources |= {"index": index, "previews": self.previews}
        self.app = application(Sources(**sources), self.replays, TokensAreNames(), Granted(), LiveViews())

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agentstream_operator", *arguments),
            cwd=self.folder,
            env={k: v for k, v in os.environ.items() if not k.startswith("AGENTSTREAM_")},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str) -> tuple[int | None, str, str]:
        return await ended(await self.start(*arguments))

    async def created(self) -> StreamReplay:
        await until(lambda: self.replays.kept)
        return next(iter(self.replays.kept.values()))

    def report(self, replay: StreamReplay, phase: ReplayPhase, **numbers: Any) -> None:
        """Does what the operator would: writes how far a replay is."""
        status = StreamReplayStatus(phase=phase, **numbers)
        self.replays.kept[replay.key] = self.replays.kept[replay.key].model_copy(update={"status": status})


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    config = uvicorn.Config(site.app, port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    config.load()
    # else it would take the signals of the tests
    serving = asyncio.create_task(server._serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    (tmp_path / ".agentstream").mkdir()
    (tmp_path / ".agentstream" / "console").write_text(
        json.dumps({"url": f"http://127.0.0.1:{port}", "token": "jane"})
    )
    yield site
    server.should_exit = True
    await serving


async def test_a_replay_is_tried_out_started_followed_and_ended(site: Site) -> None:
    code, out, err = await site.run(
        "replay", "team/coder", "--dead", "--reason", "MaxDeliveries", "--dry-run"
    )
    assert (code, err) == (0, "")
    assert out.startswith("3 of 3 dead letters of team/coder match")
    assert not site.replays.kept
    process = await site.start(
        *("replay", "team/coder", "--dead", "--reason", "MaxDeliveries", "--rate", "50", "--because", "INC")
    )
    replay = await site.created()
    assert replay.requested_by == "jane"
    assert (replay.spec.rate, replay.spec.reason) == (50, "INC")
    assert replay.spec.select == site.previews.asked[0].select
    site.report(replay, ReplayPhase.RUNNING, matched=3, moved=1, handled=0)
    assert process.stdout is not None
    first = await process.stdout.readline()
    assert b" Pending: " in first or b" Running: 1/3 moved" in first
    site.report(replay, ReplayPhase.COMPLETE, matched=3, moved=3, handled=3, finished_at=datetime.now(UTC))
    code, out, err = await ended(process)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"replay team/{replay.metadata.name} Complete: 3/3 moved · 3 handled"
    delete = ("replays", "delete", f"team/{replay.metadata.name}", "--because", "it is over")
    assert (await site.run(*delete))[0] == 0
    assert not site.replays.kept
    assert site.replays.whys == ["it is over"]


async def test_an_interrupted_command_leaves_the_replay_as_it_is(site: Site) -> None:
    process = await site.start("replay", "team/coder", "--since", "10m")
    replay = await site.created()
    assert process.stdout is not None
    assert b"Pending" in await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    code, out, err = await ended(process)
    assert (code, err) == (0, "")
    assert f"agentstream replays suspend {replay.metadata.name} -n team " in out
    assert (await site.run("replays", "suspend", replay.metadata.name, "-n", "team", "--because", "a"))[
        0
    ] == 0
    assert site.replays.kept[replay.key].spec.suspend
    assert (await site.run("replays", "resume", replay.metadata.name, "-n", "team", "--rate", "7"))[0] == 0
    assert (site.replays.kept[replay.key].spec.suspend, site.replays.kept[replay.key].spec.rate) == (False, 7)
    assert site.replays.whys == ["a", None]
    code, out, _ = await site.run("replays", "-o", "json")
    assert [each["name"] for each in json.loads(out)["replays"]] == [replay.metadata.name]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("replay", "team/nobody", "--dead"), 1, "ConsumerGroup team/nobody"),
        (("replay", "team/coder", "--dead", "--type", "nonsense"), 2, "body/select/types"),
        (("replay", "team/coder", "--id", "nonsense"), 2, "body/select/ids"),
        (("replay", "team/coder", "--since", "10m", "--until", "20m"), 2, "since must not be after until"),
        (("replay", "team/coder", "--dead", "--rate", "999999"), 2, "body/rate"),
        (("replays", "show", "team/none"), 1, "StreamReplay team/none"),
        (("replays", "delete", "team/none"), 1, "StreamReplay team/none"),
    ],
)
async def test_what_the_api_refuses_is_said_in_lines(
    site: Site, arguments: tuple[str, ...], code: int, said: str
) -> None:
    got, out, err = await site.run(*arguments)
    assert (got, out) == (code, "")
    assert said in err
    assert all(line.startswith("error: ") for line in err.splitlines())
    assert not site.replays.kept
