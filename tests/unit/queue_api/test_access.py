"""Every call against the rights of its caller: a call that is not in the table fails."""

from __future__ import annotations

import re
from typing import Any

import pytest

from agentstream_operator.queue_api.app import application
from agentstream_operator.queue_api.events import LiveViews
from agentstream_operator.reconcile.state.index import ResourceIndex
from support.asking import Reply, ask
from support.queue_api import JANE, Granted, MemoryReplays, TokensAreNames, nothing_there
from support.resources import a_group, a_stream

REPLAY = {"namespace": "team", "groupRef": {"name": "coder"}, "from": {"source": "DeadLetters"}}
LAG, LETTERS = ("get", "consumergroups/lag"), ("get", "consumergroups/deadletters")
MESSAGES = ("get", "agentstreams/messages")
Right = tuple[str, str]
NEEDS: dict[tuple[str, str], tuple[tuple[Right, ...], Any]] = {
    ("get", "/queue/lag"): ((LAG,), None),
    ("get", "/queue/lag/{namespace}/{group}"): ((LAG,), None),
    ("get", "/queue/consumers/{namespace}/{group}"): ((LAG,), None),
    ("get", "/queue/deadletters/{namespace}/{group}"): ((LETTERS,), None),
    ("get", "/queue/deadletters/{namespace}/{group}/groups"): ((LETTERS,), None),
    ("get", "/queue/messages/{namespace}/{stream}"): ((MESSAGES,), None),
    ("get", "/queue/messages/{namespace}/{stream}/{entry}"): ((MESSAGES, LETTERS), None),
    ("get", "/queue/conversations/{namespace}/{correlation}"): ((MESSAGES,), None),
    ("post", "/queue/replay"): ((("create", "streamreplays"),), REPLAY),
    ("get", "/queue/replays"): ((("list", "streamreplays"),), None),
    ("get", "/queue/replays/{namespace}/{name}"): ((("get", "streamreplays"),), None),
    ("patch", "/queue/replays/{namespace}/{name}"): ((("patch", "streamreplays"),), {"suspend": True}),
    ("delete", "/queue/replays/{namespace}/{name}"): ((("delete", "streamreplays"),), None),
    ("get", "/events"): ((LAG,), None),
}
"""Of each call: the rights that it needs, and a body."""

CALLS = sorted(NEEDS)
PLACES = {
    "namespace": "team",
    "group": "coder",
    "stream": "tasks",
    "name": "x",
    "entry": "1-0",
    "correlation": "c",
}


def site(*rules: tuple[str, str, str, str]) -> Any:
    index = ResourceIndex()
    index.put(a_stream())
    index.put(a_group())
    sources = nothing_there(index)
    return application(sources, MemoryReplays(), TokensAreNames(), Granted(rules), LiveViews(lifetime=0.0))


async def call(app: Any, method: str, path: str, headers: dict[str, str]) -> Reply:
    target = path.format(**PLACES)
    if path == "/events":
        target += "?view=lag"
    return await ask(app, method.upper(), target, NEEDS[method, path][1], headers=headers)


async def described() -> dict[tuple[str, str], Any]:
    paths = (await ask(site(), "GET", "/openapi.json", headers=JANE)).json["paths"]
    return {(method, path): operation for path, found in paths.items() for method, operation in found.items()}


async def test_every_call_is_in_the_table() -> None:
    assert sorted(await described()) == CALLS


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_a_call_says_in_its_description_what_it_needs(method: str, path: str) -> None:
    operation = (await described())[method, path]
    needs = [f"{verb} {resource}" for verb, resource in NEEDS[method, path][0]]
    assert set(needs) <= set(operation["x-agentstream-access"])
    assert {"401", "403", "500", "503"} <= set(operation["responses"])


@pytest.mark.parametrize(("method", "path"), [*CALLS, ("get", "/openapi.json")])
async def test_nobody_gets_an_answer_without_saying_who_they_are(method: str, path: str) -> None:
    target = path.format(**PLACES)
    reply = await ask(site(("*", "*", "*", "*")), method.upper(), target)
    assert reply.status == 401
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_a_call_is_refused_with_every_right_but_one_of_its_own(method: str, path: str) -> None:
    for own in NEEDS[method, path][0]:
        others = {need for needs, _ in NEEDS.values() for need in needs} - {own}
        app = site(*(("jane", *need, "*") for need in others), ("jane", *own, "other"), ("john", *own, "*"))
        reply = await call(app, method, path, JANE)
        assert reply.status == 403
        assert own[1] in reply.json["detail"]
        assert re.match("[a-z]", reply.json["remedy"])


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize("namespace", ["team", "*"])
async def test_its_own_rights_are_enough(method: str, path: str, namespace: str) -> None:
    rules = [("jane", *own, namespace) for own in NEEDS[method, path][0]]
    reply = await call(site(*rules), method, path, JANE)
    assert reply.status in {200, 202, 404, 503}, reply.body


async def test_a_list_has_only_what_one_may_see() -> None:
    app = site(("jane", *LAG, "other"))
    reply = await ask(app, "GET", "/queue/lag", headers=JANE)
    assert reply.status == 403
