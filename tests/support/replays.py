"""Replays by the calls that the operator makes: of the group `g` page by page, and of a group all at once."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec
import redis

from agentstream.protocol import commands
from agentstream.protocol.commands import DONE, PAGE, GroupCalls
from agentstream.protocol.entry import position
from agentstream.protocol.keys import StreamKeys, replay_id
from agentstream.protocol.replaying import (
    FIRST,
    LAST,
    MOVED,
    PageMoved,
    ReplayOf,
    ReplayProgress,
    Selected,
    page,
    parse_moved,
    parse_page,
    parse_progress,
    progress,
    replay,
)
from agentstream.protocol.routes import Consumes
from agentstream.transport.client import Client
from support.entries import KEY, Pending

KEYS = StreamKeys(KEY)
AGAIN = ReplayOf(KEY, "g", replay_id("again", "01234567-89ab"))
LATER = ReplayOf(KEY, "g", replay_id("later", "76543210-ba98"))
CALLS = GroupCalls(Consumes("tasks", KEY, "g", broadcast=True), "pod.1")
PLAIN = GroupCalls(Consumes("tasks", KEY, "g"), "pod.1")
WINDOW = 1000


class Replays:
    """Calls about replays, and what is to be seen of them."""

    def __init__(self, raw: redis.Redis) -> None:
        # replies of commands as they come: bytes in lists
        self.raw: Any = raw

    def call(self, command: commands.Command) -> Any:
        return self.raw.execute_command(*command)

    def move(
        self,
        entries: Sequence[Selected | str],
        *,
        of: ReplayOf = AGAIN,
        dead: bool = False,
        at: str = "",
        to: str = "",
        window: int = WINDOW,
    ) -> PageMoved:
        selected = [one if isinstance(one, Selected) else Selected(one) for one in entries]
        cursors = (at, to or selected[-1].id)
        return parse_moved(self.call(replay(of, "dead" if dead else "stream", cursors, window, selected)))

    def progress(self, of: ReplayOf = AGAIN) -> ReplayProgress:
        return parse_progress(self.call(progress(of)))

    def retries(self) -> list[tuple[str, dict[str, Any]]]:
        """Body and header of each entry of the retry stream."""
        return [
            (fields[b"m"].decode(), json.loads(fields[b"x"]))
            for _, fields in self.raw.xrange(KEYS.retry("g"))
        ]

    def handle(self, count: int, calls: GroupCalls = CALLS) -> list[Pending]:
        """Reads entries of the stream and acknowledges them."""
        held = self.read(calls.main.key, count)
        assert self.call(calls.settle(calls.main, "acked", held)) == [DONE] * count
        return held

    def read(self, key: str, count: int, consumer: str = "pod.1") -> list[Pending]:
        reply = self.raw.xreadgroup("g", consumer, {key: ">"}, count=count) or [(key, [])]
        source = CALLS.main if key == KEY else CALLS.retries
        return [Pending(entry.decode(), source) for entry, _ in reply[0][1]]

    def stats(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.raw.hgetall(KEYS.stats("g")).items()}

    def state_of(self, entry: str) -> str:
        (state,) = self.call(commands.receipt(KEYS, ("g",), (entry,)))
        return str(state.decode())


async def replay_all(
    wire: Client,
    consumes: Consumes,
    name: str = "again",
    *,
    source: Literal["stream", "dead"] = "stream",
    only: Iterable[str] | None = None,
) -> int:
    """Replays a page of the stream, or of the dead letters, as the operator does. Returns how many moved."""
    of = ReplayOf(consumes.key, consumes.group, replay_id(name, secrets.token_hex(4)))
    key = consumes.key if source == "stream" else StreamKeys(consumes.key).dead_letters(consumes.group)
    entries = parse_page(await wire.call(*page(key, FIRST, LAST, PAGE))).entries
    selected = [
        Selected(entry.id, "", _key_in(entry.fields)) for entry in entries if only is None or entry.id in only
    ]
    at, moved = "", 0
    while at != entries[-1].id:
        left = [one for one in selected if position(one.id) > position(at)]
        reply = parse_moved(await wire.call(*replay(of, source, (at, entries[-1].id), 10_000, left)))
        assert reply.code == MOVED
        at, moved = reply.cursor, moved + reply.moved
    return moved


def _key_in(fields: list[bytes]) -> str:
    body = fields[fields.index(b"m") + 1]
    return str(msgspec.json.decode(body).get("key") or "")
