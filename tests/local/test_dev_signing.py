"""`agentstream dev` with a signed stream: its agents sign and check without being told how."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentstream_operator.local.bindings import SigningFiles
from agentstream_operator.resources.meta import ResourceKey
from support.dev import Dev, coders

STREAM = ResourceKey("AgentStream", "default", "tasks")


@pytest.fixture
async def dev(tmp_path: Path) -> AsyncIterator[Dev]:
    dev = Dev(tmp_path)
    yield dev
    await dev.close()


def declare(dev: Dev, rotation: int) -> None:
    signing = f"producers: [boss], signing: {{policy: Require, rotation: {rotation}}}"
    (dev.directory / "m.yaml").write_text(coders(messages=20).replace("producers: [boss]", signing))


async def test_agents_have_the_keys_of_a_signed_stream_and_keep_them_over_a_restart(dev: Dev) -> None:
    data = dev.directory / ".agentstream"
    files = SigningFiles(data / "signing")
    ids = []
    for rotation in (0, 0, 1):
        declare(dev, rotation)
        await dev.start("m.yaml", "--until-idle", "2s", "--output", "json")
        assert await dev.wait() == 0
        total = dev.summary["total"]
        assert (total["acknowledged"], total["lost"], total["deadLettered"]) == (20, 0, 0)
        found = files.read(STREAM)
        assert found is not None
        ids.append([key.id for key in found.keys])
        for agent in ("boss", "coder"):
            assert (data / "bindings" / f"default.{agent}" / "signing-tasks").exists()
        assert not [key for key in found.keys if key.secret in dev.text]
    first, second, third = ids
    assert first == second == third[1:]
    assert len(third) == 2
    path = data / "signing" / "default.tasks"
    assert [stat.S_IMODE(place.stat().st_mode) for place in (path.parent, path)] == [0o700, 0o600]
