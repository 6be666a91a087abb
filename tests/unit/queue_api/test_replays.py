"""Replays over HTTP: started once, tried out, held, ended; and what is wrong with a request."""

from __future__ import annotations

from typing import Any

import pytest

from agentstream_operator.queue_api.app import application
from agentstream_operator.queue_api.documents import PreviewAnswer
from agentstream_operator.queue_api.events import LiveViews
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.streamreplay import ReplaySource, StreamReplaySpec
from support.asking import Reply, ask
from support.queue_api import JANE, Granted, MemoryReplays, TokensAreNames, nothing_there
from support.resources import a_group, a_stream

DEAD = {"namespace": "team", "groupRef": {"name": "coder"}, "from": {"source": "DeadLetters"}}
REPLAYS = "/queue/replays/team"


class Previews:
    """Says that two messages of each group match."""

    async def preview(self, group: ConsumerGroup, spec: StreamReplaySpec) -> PreviewAnswer:
        return PreviewAnswer(
            namespace=group.metadata.namespace,
            group=group.metadata.name,
            source=ReplaySource.DEAD_LETTERS,
            scanned=3,
            more=False,
            matched=2,
            would_move=1,
            skipped={"expired": 1},
            seconds=1 / spec.rate,
            sample=(),
            warnings=(),
        )


class Site:
    """The application, with replays in memory."""

    def __init__(self) -> None:
        index = ResourceIndex()
        index.put(a_stream())
        index.put(a_group())
        self.replays = MemoryReplays()
        self.access = Granted()
        sources = nothing_there(index, previews=Previews())
        self.app = application(sources, self.replays, TokensAreNames(), self.access, LiveViews())

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await ask(self.app, method, path, body, headers={**JANE, **names})


@pytest.fixture
def site() -> Site:
    return Site()


async def test_a_replay_is_created_for_who_asks_and_its_place_is_said(site: Site) -> None:
    reply = await site.ask("POST", "/queue/replay", {**DEAD, "reason": "INC-1"})
    assert reply.status == 202
    (replay,) = site.replays.kept.values()
    assert replay.metadata.name.startswith("coder-")
    assert (replay.requested_by, replay.spec.reason) == ("jane", "INC-1")
    assert reply.headers["location"] == f"{REPLAYS}/{replay.metadata.name}"
    seen = await site.ask("GET", reply.headers["location"])
    assert (seen.status, seen.json) == (200, reply.json)
    assert reply.json["phase"] == "Pending"
    assert reply.json["spec"]["from"] == {"source": "DeadLetters", "since": None, "until": None}


async def test_a_dry_run_answers_at_once_and_creates_nothing(site: Site) -> None:
    reply = await site.ask("POST", "/queue/replay", {**DEAD, "dryRun": True, "rate": 50})
    assert (reply.status, site.replays.kept) == (200, {})
    assert reply.json["wouldMove"] == 1
    assert reply.json["seconds"] == 0.02
    assert reply.json["cursor"] is None


async def test_the_same_key_with_the_same_body_starts_nothing_twice(site: Site) -> None:
    first = await site.ask("POST", "/queue/replay", DEAD, idempotency_key="inc-1")
    await site.ask("PATCH", f"{REPLAYS}/inc-1", {"rate": 7})
    again = await site.ask("POST", "/queue/replay", DEAD, idempotency_key='"inc-1"')
    assert (first.status, again.status, len(site.replays.kept)) == (202, 202, 1)
    assert again.headers["location"] == first.headers["location"] == f"{REPLAYS}/inc-1"
    assert again.json["uid"] == first.json["uid"]


async def test_the_same_key_with_another_body_is_a_conflict(site: Site) -> None:
    await site.ask("POST", "/queue/replay", DEAD, idempotency_key="inc-1")
    reply = await site.ask("POST", "/queue/replay", {**DEAD, "limit": 1}, idempotency_key="inc-1")
    assert (reply.status, len(site.replays.kept)) == (409, 1)


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        ({}, {}, 422, "body/groupRef: Field required"),
        ({**DEAD, "rat": 1}, {}, 422, "body/rat"),
        ({**DEAD, "rate": "1"}, {}, 422, "body/rate"),
        ({**DEAD, "namespace": "A"}, {}, 422, "body/namespace"),
        ({**DEAD, "action": "Drop"}, {}, 422, "Drop needs a select"),
        ({**DEAD, "from": {"source": "Stream", "since": "2026-02-30T00:00:00Z"}}, {}, 422, "body/from/since"),
        ({**DEAD, "groupRef": {"name": "nobody"}}, {}, 404, "ConsumerGroup team/nobody"),
        ({**DEAD, "name": "a"}, {"idempotency_key": "b"}, 422, "header/Idempotency-Key"),
        (DEAD, {"idempotency_key": "A B"}, 422, "header/Idempotency-Key"),
        (b"{", {}, 422, "JSON"),
        (b"\xff\xfe", {}, 422, "body"),
        (b"[" * 200_000, {}, 400, "body"),
        ([], {}, 422, "body"),
        (b" " * 262_145, {}, 413, "262,144"),
    ],
)
async def test_what_is_wrong_is_said_with_what_to_do(
    site: Site, body: object, headers: dict[str, str], status: int, said: str
) -> None:
    reply = await site.ask("POST", "/queue/replay", body, **headers)
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/problem+json"
    assert said in reply.json["detail"]
    assert reply.json["remedy"]
    assert site.replays.kept == {}


async def test_a_replay_is_held_and_changed_and_ended(site: Site) -> None:
    await site.ask("POST", "/queue/replay", {**DEAD, "ttlSecondsAfterFinished": 60}, idempotency_key="a")
    held = await site.ask("PATCH", f"{REPLAYS}/a", {"suspend": True, "ttlSecondsAfterFinished": None})
    assert (held.status, held.json["spec"]["suspend"]) == (200, True)
    assert held.json["spec"]["ttlSecondsAfterFinished"] is None
    ended = await site.ask("DELETE", f"{REPLAYS}/a")
    assert (ended.status, ended.body, site.replays.kept) == (204, b"", {})
    for method, body in (("GET", None), ("PATCH", {"suspend": True}), ("DELETE", None)):
        assert (await site.ask(method, f"{REPLAYS}/a", body)).status == 404
    assert set(site.replays.callers) == {"jane"}


@pytest.mark.parametrize(
    ("change", "said"),
    [({}, "nothing"), ({"limit": 1}, "body/limit"), ({"rate": 0}, "body/rate"), ({"rate": 13}, "unlucky")],
)
async def test_nothing_else_of_a_replay_can_be_changed(site: Site, change: Any, said: str) -> None:
    await site.ask("POST", "/queue/replay", DEAD, idempotency_key="a")
    reply = await site.ask("PATCH", f"{REPLAYS}/a", change)
    assert reply.status == 422
    assert said in reply.json["detail"]


async def test_lists_are_of_what_one_may_see_the_newest_first(site: Site) -> None:
    for name in ("a", "b"):
        await site.ask("POST", "/queue/replay", DEAD, idempotency_key=name)
    listed = (await site.ask("GET", "/queue/replays")).json["replays"]
    assert [each["name"] for each in listed] == ["b", "a"]
    assert (await site.ask("GET", "/queue/replays?group=other")).json == {"replays": []}
    site.access.rules = [("jane", "list", "streamreplays", "elsewhere")]
    assert (await site.ask("GET", "/queue/replays?namespace=elsewhere")).json == {"replays": []}
    for path in ("/queue/replays", "/queue/replays?namespace=team"):
        assert (await site.ask("GET", path)).status == 403
    site.access.rules = [("jane", "list", "streamreplays", "team")]
    assert len((await site.ask("GET", "/queue/replays")).json["replays"]) == 2
