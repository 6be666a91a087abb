"""Messages and dead letters as people look at them: in pages that say what was looked at."""

from __future__ import annotations

import pytest
import redis

from agentstream.protocol.keys import StreamKeys
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.scan import Span
from agentstream_operator.plan.actions import CreateGroup, CreateStream
from agentstream_operator.plan.selection import Selection
from agentstream_operator.queue_api.browser import Browser, MessagesWanted
from agentstream_operator.queue_api.problems import Refusal
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.streamreplay import ReplaySelect
from support.entries import envelope
from support.resources import KEY, a_group, a_stream

LETTERS = StreamKeys(KEY).dead_letters("coder")
STREAM, GROUP = a_stream(), a_group()
HUGE = 18 * 2**20


@pytest.fixture
async def browser(broker: Broker) -> Browser:
    await broker.apply(CreateStream(KEY, {"name": "tasks"}))
    await broker.apply(CreateGroup(KEY, "coder", "0"))
    index = ResourceIndex()
    index.put(STREAM)
    index.put(GROUP)
    return Browser(index, broker)


def bury(admin: redis.Redis, number: int, reason: str = "MaxDeliveries", error: str = "") -> str:
    said = error or f"ValueError: cannot read document {number}"
    fields = {"m": envelope(number), "origin": f"{number + 1}-0", "attempts": "5", "fence": "5"}
    entry: str = admin.xadd(LETTERS, {**fields, "reason": reason, "error": said})
    return entry


async def test_letters_come_newest_first_in_pages_that_leave_nothing_out(
    browser: Browser, admin: redis.Redis
) -> None:
    ids = [bury(admin, number) for number in range(130)]
    seen, cursor, pages = list[str](), None, 0
    while True:
        page = await browser.letters(GROUP, 50, cursor)
        seen += [letter.letter for letter in page.letters]
        pages, cursor = pages + 1, page.cursor
        assert (page.total, page.scanned) == (130, len(page.letters))
        if not page.more:
            break
    assert (seen, pages, cursor) == (ids[::-1], 3, None)
    newest = (await browser.letters(GROUP, 1, None)).letters[0]
    assert (newest.origin, newest.attempts, newest.message.payload) == ("130-0", 5, {"number": 129})


async def test_letters_that_died_of_the_same_are_one_line(browser: Browser, admin: redis.Redis) -> None:
    for number in range(40):
        bury(admin, number)
    last = bury(admin, 7, "Expired", "too late")
    found = await browser.letter_groups(GROUP, None)
    assert [(g.reason, g.error, g.count) for g in found.groups] == [
        ("MaxDeliveries", "ValueError: cannot read document <n>", 40),
        ("Expired", "too late", 1),
    ]
    assert (found.groups[1].letter, found.scanned, found.more) == (last, 41, False)


async def test_whatever_agents_wrote_there_is_shown(browser: Browser, admin: redis.Redis) -> None:
    hostile: list[dict[bytes, bytes]] = [
        {b"m": b"\xff\x00"},
        {b"m": b"[" * 100_000},
        {b"x": b"y", b"reason": b"\x1b[2J" * 1000, b"error": b"\xf0\x28\x8c\x28" * 5000},
        {b"m": b"x" * HUGE},
        {b"origin": b"9" * 1000, b"attempts": b"nan", b"reason": b"", b"m": envelope(1).encode()},
    ]
    for fields in hostile:
        admin.xadd(LETTERS, fields)  # type: ignore[arg-type]
        admin.xadd(KEY, fields)  # type: ignore[arg-type]
    letters = await browser.letters(GROUP, 50, None)
    groups = await browser.letter_groups(GROUP, None)
    messages = await browser.messages(STREAM, MessagesWanted(Span(), 50))
    assert len(letters.letters) == len(messages.messages) == sum(g.count for g in groups.groups) == 5
    for answer in (letters, groups, messages):
        text = answer.model_dump_json()
        assert "\\u001b" not in text
        assert len(text) < 100_000


async def test_messages_are_found_by_what_they_say(browser: Browser, admin: redis.Redis) -> None:
    ids = [
        admin.xadd(KEY, {"m": envelope(n, type="event" if n % 10 == 0 else "task_request")})
        for n in range(300)
    ]
    wanted = Selection(ReplaySelect(types=("event",)))
    newest = await browser.messages(STREAM, MessagesWanted(Span(), 2, wanted))
    assert [m.entry for m in newest.messages] == [ids[290], ids[280]]
    assert (newest.scanned, newest.more) == (20, True)
    found, cursor, scanned = list[str](), None, 0
    while True:
        page = await browser.messages(STREAM, MessagesWanted(Span(order="forward", cursor=cursor), 7, wanted))
        found += [m.entry for m in page.messages]
        scanned, cursor = scanned + page.scanned, page.cursor
        if not page.more:
            break
    assert (found, scanned) == (ids[::10], 300)
    between = await browser.messages(STREAM, MessagesWanted(Span(ids[5], ids[7], "forward"), 50))
    assert [m.entry for m in between.messages] == ids[5:8]
    assert not (await browser.messages(STREAM, MessagesWanted(Span("1-0", "2-0"), 50))).more


async def test_messages_are_found_by_a_part_of_their_text_or_id(browser: Browser, admin: redis.Redis) -> None:
    ids = [admin.xadd(KEY, {"m": envelope(n, payload={"text": f"Order {n} für Ünal"})}) for n in range(40)]
    admin.xadd(KEY, {"other": "order 17"})

    async def found(**wanted: str) -> list[str]:
        page = await browser.messages(STREAM, MessagesWanted(Span(order="forward"), 50, **wanted))
        assert (page.scanned, page.more) == (41, False)
        return [each.entry for each in page.messages]

    assert await found(text="ORDER 17 f") == [ids[17]]
    assert await found(id_=f"00000000-0000-4000-8000-{23:012}") == [ids[23]]
    assert await found(id_="00000000-0000-4000-8000-00000000003") == ids[30:]
    assert await found(text="order 3", id_="0000") == [ids[3], *ids[30:]]
    assert await found(text="nobody") == []
    compact = admin.xadd(KEY, {"m": envelope(99).replace(": ", ":").replace(", ", ",")})
    page = await browser.messages(STREAM, MessagesWanted(Span(), 50, text='"NUMBER": 99'))
    assert [each.entry for each in page.messages] == [compact]


async def test_what_is_no_id_is_refused_and_what_has_no_stream_is_said(
    browser: Browser, broker: Broker
) -> None:
    for span in (Span("x"), Span(cursor="1-1-1"), Span(end="18446744073709551616-0")):
        with pytest.raises(Refusal, match="query/") as refused:
            await browser.messages(STREAM, MessagesWanted(span, 1))
        assert refused.value.status == 422
    lost = Browser(ResourceIndex(), broker)
    with pytest.raises(Refusal) as missing:
        await lost.letters(GROUP, 1, None)
    assert missing.value.status == 409


@pytest.mark.parametrize(
    "span",
    [
        Span(cursor="0"),
        Span(cursor="0-0"),
        Span(end="0"),
        Span(start="18446744073709551615"),
        Span(order="forward", cursor="18446744073709551615-18446744073709551615"),
        Span(start="18446744073709551615-18446744073709551615", order="forward"),
    ],
)
async def test_beyond_the_ends_of_ids_there_is_nothing(
    browser: Browser, admin: redis.Redis, span: Span
) -> None:
    admin.xadd(KEY, {"m": envelope(1)})
    page = await browser.messages(STREAM, MessagesWanted(span, 10))
    assert (page.scanned, page.more, page.messages) == (0, False, ())


async def test_the_first_part_of_an_id_is_a_whole_millisecond(browser: Browser, admin: redis.Redis) -> None:
    for entry in ("4-9", "5-0", "5-7", "6-0"):
        admin.xadd(KEY, {"m": envelope(1)}, id=entry)
    page = await browser.messages(STREAM, MessagesWanted(Span("5", "5"), 10))
    assert [message.entry for message in page.messages] == ["5-7", "5-0"]
