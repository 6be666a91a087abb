"""Every page against the rights of its visitor, and hostile data on every page."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from html import unescape
from typing import Any
from urllib.parse import quote, urljoin

import pytest

from agentstream_operator.console.app import _ACTIONS, _PAGES, Console
from agentstream_operator.console.visitors import COOKIE
from agentstream_operator.plan.fate import MessageState
from agentstream_operator.queue_api.app import application
from agentstream_operator.queue_api.documents import (
    ConsumerItem,
    ConsumersAnswer,
    ConversationAnswer,
    ConversationItem,
    LetterGroupItem,
    LetterGroupsAnswer,
    LetterItem,
    LettersAnswer,
    MessageAnswer,
    MessageItem,
    MessagesAnswer,
    PreviewAnswer,
    SearchedStream,
    StateInGroup,
)
from agentstream_operator.queue_api.events import LiveViews
from agentstream_operator.reconcile.state.index import ResourceIndex
from support.asking import Reply, ask
from support.queue_api import Granted, MemoryReplays, TokensAreNames, nothing_there
from support.resources import a_group, a_stream

JANE = {"cookie": f"{COOKIE}=jane", "host": "127.0.0.1"}
PLACES = {"namespace": "team", "name": "coder", "stream": "tasks", "entry": "1-0", "correlation": "c"}
NEEDS: dict[str, Sequence[tuple[str, str]]] = {
    "/console": [("get", "consumergroups/lag")],
    "/console/streams/{namespace}/{name}": [("get", "consumergroups/lag")],
    "/console/groups/{namespace}/{name}": [("get", "consumergroups/lag")],
    "/console/groups/{namespace}/{name}/deadletters": [("get", "consumergroups/deadletters")],
    "/console/groups/{namespace}/{name}/deadletters/list": [("get", "consumergroups/deadletters")],
    "/console/messages/{namespace}/{stream}/{entry}": [
        ("get", "agentstreams/messages"),
        ("get", "consumergroups/deadletters"),
    ],
    "/console/conversations/{namespace}/{correlation}": [("get", "agentstreams/messages")],
    "/console/replays": [("list", "streamreplays")],
    "/console/replays/{namespace}/{name}": [("get", "streamreplays")],
}
HOSTILE = "</pre><script>alert(1)</script>\x1b[2J\u202e\"'><img src=x onerror=alert(1)>{{7*7}}"
AT = datetime(2026, 1, 1, tzinfo=UTC)
ITEM: dict[str, Any] = {
    "entry": "1-0",
    "at": AT,
    "size": 9,
    "id": HOSTILE,
    "from_": HOSTILE,
    "to": HOSTILE,
    "type": HOSTILE,
    "correlation_id": HOSTILE,
    "key": HOSTILE,
    "payload": {HOSTILE: [HOSTILE]},
    "problem": HOSTILE,
}
LOOKED: dict[str, Any] = {"scanned": 1, "from_": "1-0", "to": "1-0", "more": True, "cursor": HOSTILE}


class Hostile:
    """Answers with what hostile agents may have written."""

    async def messages(self, *_: Any) -> MessagesAnswer:
        return MessagesAnswer(namespace="team", stream="tasks", messages=(MessageItem(**ITEM),), **LOOKED)

    async def letters(self, *_: Any) -> LettersAnswer:
        letter = LetterItem(
            letter="1-0", origin="1-0", reason=HOSTILE, error=HOSTILE, message=MessageItem(**ITEM)
        )
        return LettersAnswer(namespace="team", group="coder", total=1, letters=(letter,), **LOOKED)

    async def letter_groups(self, *_: Any) -> LetterGroupsAnswer:
        group = LetterGroupItem(reason=HOSTILE, error=HOSTILE, count=7, sample=HOSTILE, letter="1-0", last=AT)
        return LetterGroupsAnswer(namespace="team", group="coder", total=7, groups=(group,), **LOOKED)

    async def message(self, *_: Any) -> MessageAnswer:
        state = StateInGroup(
            group="coder",
            state=MessageState.DEAD,
            consumer=HOSTILE,
            pod=HOSTILE,
            error=HOSTILE,
            reason=HOSTILE,
        )
        return MessageAnswer(namespace="team", stream="tasks", groups=(state,), **ITEM)

    async def conversation(self, *_: Any) -> ConversationAnswer:
        return ConversationAnswer(
            namespace="team",
            correlation_id=HOSTILE,
            messages=(ConversationItem(stream="tasks", **ITEM),),
            streams=(SearchedStream(stream="tasks", problem=HOSTILE, **LOOKED),),
            more=True,
            cursor=HOSTILE,
        )

    async def consumers(self, *_: Any) -> ConsumersAnswer:
        found = ConsumerItem(name=HOSTILE, pod=HOSTILE, pending=1, holds=())
        return ConsumersAnswer(namespace="team", group="coder", more=True, consumers=(found,))

    async def preview(self, *_: Any) -> PreviewAnswer:
        return PreviewAnswer(
            namespace="team",
            group="coder",
            source="DeadLetters",  # type: ignore[arg-type]
            total=9,
            matched=7,
            would_move=6,
            skipped={HOSTILE: 1},
            seconds=3,
            sample=(),
            warnings=(HOSTILE,),
            **LOOKED,
        )


def site(*rules: tuple[str, str, str, str], **sources: Any) -> Console:
    index = ResourceIndex()
    index.put(a_stream())
    index.put(a_group())
    live = LiveViews(lifetime=0.0)
    access = Granted(rules or (("*", "*", "*", "*"),))
    gate = application(nothing_there(index, **sources), MemoryReplays(), TokensAreNames(), access, live)
    return Console(gate, live)


def hostile() -> Console:
    there = Hostile()
    names = ("browser", "finder", "conversations", "consumers", "previews")
    return site(**dict.fromkeys(names, there))


def target(path: str) -> str:
    names = {**PLACES, "name": "tasks"} if "/streams/" in path else PLACES
    return path.format(**names)


async def test_every_page_is_in_the_table() -> None:
    assert {*NEEDS, "/console/replay"} == {page.replace(":path", "") for page in _PAGES}


@pytest.mark.parametrize("path", [*sorted(NEEDS), "/console/replay", "/console/nothing", "/console/live"])
async def test_strangers_are_sent_to_the_login(path: str) -> None:
    for cookie in ("", "x", f"{COOKIE}=", "other=jane", f"{COOKIE}=;;;"):
        reply = await ask(site(), "GET", target(path), headers={"cookie": cookie})
        assert reply.status == 303
        assert reply.headers["location"].startswith("/console/login?next=")


@pytest.mark.parametrize("path", sorted(NEEDS))
async def test_a_page_without_one_of_its_rights_shows_nothing(path: str) -> None:
    for missing in NEEDS[path]:
        every = {need for needs in NEEDS.values() for need in needs} - {missing}
        reply = await ask(site(*(("jane", *need, "*") for need in every)), "GET", target(path), headers=JANE)
        assert reply.status == 403
        assert missing[1] in unescape(reply.body.decode())


@pytest.mark.parametrize("path", sorted(NEEDS))
async def test_the_rights_of_a_page_are_enough(path: str) -> None:
    rules = [("jane", *need, "*") for need in NEEDS[path]]
    reply = await ask(site(*rules), "GET", target(path), headers=JANE)
    assert reply.status in {200, 404}, reply.body
    assert reply.headers["content-type"].startswith("text/html")


async def test_numbers_alone_show_a_stream_without_its_messages() -> None:
    app = site(("jane", "get", "consumergroups/lag", "*"))
    reply = await ask(app, "GET", "/console/streams/team/tasks", headers=JANE)
    assert reply.status == 200
    assert "agentstreams/messages" in unescape(reply.body.decode())


@pytest.mark.parametrize(
    "path",
    [
        *sorted(NEEDS),
        f"/console/replay?namespace=team&group=coder&source=DeadLetters&reasons={'%3Cb%3E'}&look=1",
    ],
)
async def test_hostile_data_do_no_harm_on_any_page(path: str) -> None:
    reply = await ask(hostile(), "GET", target(path), headers=JANE)
    text = reply.body.decode()
    harmless(text)
    # what the page itself has is no script, either
    assert re.findall(r"<script[^>]*>", text) == ['<script src="/console/static/console.js" defer>']
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["cache-control"] == "no-store"


def harmless(text: str) -> None:
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "{{7*7}}" in text or HOSTILE[:20] not in unescape(text)
    assert not set("\x1b\u202e") & set(text)


@pytest.mark.parametrize(
    "query",
    ["q=%3Cscript%3Ealert(1)%3C/script%3E", "q=%22%3E%3Cimg+src=x+onerror=alert(1)%3E", "type=x&cursor=%00"],
)
async def test_what_an_address_asks_for_does_no_harm(query: str) -> None:
    for path in ("/console/streams/team/tasks", "/console/replay", "/console/groups/team/coder/deadletters"):
        reply = await ask(site(), "GET", f"{path}?{query}&look=1&namespace={query}&group=x", headers=JANE)
        harmless(reply.body.decode())


async def test_a_conversation_may_have_any_name() -> None:
    for name in ("a/b", "a%2Fb", "..", "a b?c=d#e", "ü", "%00"):
        reply = await ask(site(), "GET", f"/console/conversations/team/{quote(name, safe='')}", headers=JANE)
        assert reply.status == 200, name
        assert "No message with this id" in reply.body.decode()


async def test_the_button_has_the_count_and_acts_on_what_is_shown() -> None:
    reply = await ask(hostile(), "GET", "/console/groups/team/coder/deadletters", headers=JANE)
    text = reply.body.decode()
    assert ">Replay 7…</button>" in text
    assert ">Drop 7…</button>" in text
    assert f'name="until" value="{AT.isoformat()}"' in text


FORM = (
    b"namespace=team&group=coder&source=DeadLetters&reasons=MaxDeliveries"
    b"&action=Redeliver&reason=INC-1&rate=50"
)


async def test_a_form_starts_a_replay_in_the_name_of_its_visitor() -> None:
    app = site()
    headers = {**JANE, "content-type": "application/x-www-form-urlencoded"}
    reply = await ask(app, "POST", "/console/replay", FORM, headers=headers)
    assert reply.status == 303
    (replay,) = app.gate.app.state.replays.kept.values()  # type: ignore[attr-defined]
    assert reply.headers["location"] == f"/console/replays/team/{replay.metadata.name}"
    assert (replay.requested_by, replay.spec.reason, replay.spec.rate) == ("jane", "INC-1", 50)
    page = await ask(app, "GET", reply.headers["location"], headers=JANE)
    assert "INC-1" in page.body.decode()
    for action, suspended in (("suspend", True), ("resume", False)):
        await ask(
            app,
            "POST",
            reply.headers["location"],
            f"action={action}&reason=INC-2+{action}".encode(),
            headers=headers,
        )
        (replay,) = app.gate.app.state.replays.kept.values()  # type: ignore[attr-defined]
        assert replay.spec.suspend is suspended
    ended = await ask(app, "POST", reply.headers["location"], b"reason=&action=delete", headers=headers)
    assert app.gate.app.state.replays.whys == ["INC-2 suspend", "INC-2 resume", None]  # type: ignore[attr-defined]
    assert (ended.status, ended.headers["location"]) == (303, "/console/replays")
    assert not app.gate.app.state.replays.kept  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", sorted(_ACTIONS))
async def test_nothing_is_changed_without_the_right_to_it(path: str) -> None:
    app = site(*(("jane", "get", need, "*") for need in ("streamreplays", "consumergroups/lag")))
    reply = await ask(app, "POST", target(path), FORM + b"&action=delete", headers=JANE)
    assert reply.status == 403
    assert not app.gate.app.state.replays.callers  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b"namespace=team&group=coder",
        FORM.replace(b"50", b"fast"),
        FORM.replace(b"coder", b"nobody"),
        b"\xff=\xff",
    ],
)
async def test_a_form_that_makes_no_sense_is_a_page_that_says_so(form: bytes) -> None:
    reply = await ask(site(), "POST", "/console/replay", form, headers=JANE)
    assert 400 <= reply.status < 500
    assert "finding" in reply.body.decode()


async def test_the_api_is_as_it_was_and_takes_no_cookie() -> None:
    app = site()
    reply = await ask(app, "GET", "/queue/lag", headers={"authorization": "Bearer jane"})
    assert reply.status == 200
    assert (await ask(app, "GET", "/queue/lag", headers=JANE)).status == 401


async def live(app: Console, page: str) -> Reply:
    return await ask(app, "GET", f"/console/live?page={page}", headers=JANE)


async def test_a_live_page_needs_the_same_rights() -> None:
    app = Console(site(("jane", "get", "consumergroups/lag", "*")).gate, LiveViews(every=0.01, lifetime=0.02))
    shown = (await live(app, "/console")).body.decode()
    assert "event: page" in shown
    assert "event: problem" in (await live(app, "/console/replays")).body.decode()
    assert (await live(app, "/etc/passwd")).status == 404


@pytest.mark.parametrize(
    "address", ["//[", "http://[x", "//[::1]x/", "/console//[", "[", "\\\\[", "?", "#", ""]
)
async def test_an_address_that_is_none_is_never_an_error_of_the_server(address: str) -> None:
    given = quote(address, safe="")
    for path in ("/console/login?next=", "/console/live?page="):
        reply = await ask(site(), "GET", path + given, headers=JANE)
        assert reply.status in {200, 404}, (path, reply.body)
    form = f"token=jane&next={given}".encode()
    reply = await ask(site(), "POST", "/console/login", form, headers={"host": "127.0.0.1"})
    assert reply.status == 303
    assert reply.headers["location"].startswith("/console")


@pytest.mark.parametrize(
    "correlation", ["a/b", "a//b", "/a", "a/", "../../logout", "a?b#c", "%2F", "..a", "é"]
)
async def test_a_conversation_is_found_by_any_id(correlation: str) -> None:
    asked: list[str] = []

    class Asked(Hostile):
        async def message(self, *_: Any) -> MessageAnswer:
            named = {**ITEM, "correlation_id": correlation}
            return MessageAnswer(namespace="team", stream="tasks", groups=(), **named)

        async def conversation(self, *given: Any) -> ConversationAnswer:
            asked.append(given[2])
            return await super().conversation()

    app = site(finder=Asked(), conversations=Asked())
    page = (await ask(app, "GET", "/console/messages/team/tasks/1-0", headers=JANE)).body.decode()
    (link,) = re.findall(r'href="(/console/conversations/[^"]*)"', page)
    assert urljoin("http://x/console/messages/team/tasks/1-0", unescape(link)).endswith(unescape(link))
    assert (await ask(app, "GET", unescape(link), headers=JANE)).status == 200
    assert asked == [correlation]


@pytest.mark.parametrize("reason", ["Failed, Expired", ",", "a,b,c", "'\"<b>", "Failed", " x, "])
async def test_a_button_for_one_reason_acts_on_this_one(reason: str) -> None:
    app = site()
    query = f"namespace=team&group=coder&source=DeadLetters&reasons={quote(reason)}"
    shown = (await ask(app, "GET", f"/console/replay?{query}", headers=JANE)).body.decode()
    (again,) = re.findall(r'name="reasons" value="([^"]*)"', shown)
    assert unescape(again) == reason
    reply = await ask(app, "POST", "/console/replay", query.encode(), headers=JANE)
    assert reply.status == 303
    (replay,) = app.gate.app.state.replays.kept.values()  # type: ignore[attr-defined]
    assert replay.spec.select.reasons == (reason,)


@pytest.mark.parametrize("opened", [1, 20, 21, 60])
async def test_live_pages_that_are_opened_at_once_are_refused_in_time_or_shown(opened: int) -> None:
    app = Console(site().gate, LiveViews(every=0.01, lifetime=0.1))
    for _ in range(2):
        # all turns are given back
        replies = await asyncio.gather(*(live(app, "/console") for _ in range(opened)))
        assert sorted(reply.status for reply in replies) == [200] * min(opened, 20) + [429] * (opened - 20)
        assert all(b"event: page" in reply.body for reply in replies if reply.status == 200)
