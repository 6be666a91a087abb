"""What the API server is asked, where it has objects, and what becomes of its answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import (
    ACCESS_REVIEWS,
    AGENTSTREAMS,
    CONSUMERGROUPS,
    DEPLOYMENTS,
    LEASES,
    PODS,
    SECRETS,
)
from agentstream_operator.cluster.port import ClusterUnavailable
from support.servers import free_port
from support.waiting import until
from unit.cluster.answers import Answer, answering, breaks_off, connected, never, refuses, says

Call = Callable[[Api], Awaitable[Any]]
BODY = {"metadata": {"name": "a", "namespace": "team"}, "spec": {}}
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"

CALLS: dict[str, Call] = {
    "get": lambda api: api.get(SECRETS, "team", "a"),
    "list": lambda api: anext(api.list(SECRETS, None)),
    "create": lambda api: api.create(SECRETS, "team", BODY),
    "merge": lambda api: api.merge(LEASES, "team", "a", BODY),
    "apply": lambda api: api.apply(DEPLOYMENTS, BODY, force=True),
    "replace_status": lambda api: api.replace_status(AGENTSTREAMS, "team", "a", "uid", {"length": 7}),
    "delete": lambda api: api.delete(SECRETS, "team", "a"),
}
call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.mark.parametrize(
    ("call", "method", "path", "content"),
    [
        (CALLS["get"], "GET", "/api/v1/namespaces/team/secrets/a", "application/json"),
        (
            CALLS["create"],
            "POST",
            "/api/v1/namespaces/team/secrets?fieldManager=agentstream",
            "application/json",
        ),
        (
            CALLS["merge"],
            "PATCH",
            "/apis/coordination.k8s.io/v1/namespaces/team/leases/a?fieldManager=agentstream",
            MERGE,
        ),
        (
            lambda api: api.merge(DEPLOYMENTS, "team", "a", {}, part="scale"),
            "PATCH",
            "/apis/apps/v1/namespaces/team/deployments/a/scale?fieldManager=agentstream",
            MERGE,
        ),
        (
            CALLS["apply"],
            "PATCH",
            "/apis/apps/v1/namespaces/team/deployments/a?fieldManager=agentstream&force=true",
            APPLY,
        ),
        (
            lambda api: api.apply(DEPLOYMENTS, BODY, force=False),
            "PATCH",
            "/apis/apps/v1/namespaces/team/deployments/a?fieldManager=agentstream",
            APPLY,
        ),
        (
            CALLS["replace_status"],
            "PATCH",
            f"{AGENTSTREAMS.path('team', 'a', 'status')}?fieldManager=agentstream",
            "application/json-patch+json",
        ),
        (CALLS["delete"], "DELETE", "/api/v1/namespaces/team/secrets/a", "application/json"),
    ],
)
async def test_a_request_is_what_the_api_has_for_it(call: Call, method: str, path: str, content: str) -> None:
    async with answering(says(200)) as server:
        await call(server.api)
        (asked,) = server.asked
    assert (asked.method, asked.path, asked.headers["Content-Type"]) == (method, path, content)
    assert asked.headers["User-Agent"] == "agentstream-operator"
    assert asked.headers["authorization"] == "Bearer token"


GROUPS, BOTH = {"groups": [{"name": "apps"}, {"name": "agentstream.dev"}]}, ["agentstreams", "consumergroups"]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([says(200, {"groups": [{"name": "apps"}]})], False),
        ([says(200, GROUPS), says(404, "404 page not found")], False),
        ([says(200, GROUPS), says(200, {"resources": [{"name": "consumergroups"}]})], False),
        ([says(200, GROUPS), says(200, {"resources": [{"name": name} for name in BOTH]})], True),
    ],
    ids=["no group", "no version", "no kind", "all"],
)
async def test_a_kind_is_there_when_discovery_has_its_group_its_version_and_itself(
    answers: list[Answer], *, expected: bool
) -> None:
    async with answering(*answers) as server:
        assert await server.api.discovers(AGENTSTREAMS) is expected
        assert [asked.path for asked in server.asked] == ["/apis", f"/apis/{AGENTSTREAMS.api_version}"][
            : len(answers)
        ]


async def test_what_is_applied_names_its_kind() -> None:
    async with answering(says(200)) as server:
        await server.api.apply(DEPLOYMENTS, BODY, force=False)
        assert server.asked[0].body == {"apiVersion": "apps/v1", "kind": "Deployment", **BODY}


async def test_a_status_is_for_one_object_only() -> None:
    async with answering(says(200)) as server:
        await CALLS["replace_status"](server.api)
        assert server.asked[0].body == [
            {"op": "test", "path": "/metadata/uid", "value": "uid"},
            {"op": "add", "path": "/status", "value": {"length": 7}},
        ]


async def test_names_cannot_lead_elsewhere() -> None:
    async with answering(says(200)) as server:
        await server.api.get(SECRETS, "team", "a?x=b c")
        assert server.asked[0].path.endswith("/secrets/a%3Fx=b%20c")


async def test_what_belongs_to_a_deleted_object_follows_it() -> None:
    async with answering(says(200)) as server:
        await server.api.delete(DEPLOYMENTS, "team", "a")
        assert server.asked[0].body["propagationPolicy"] == "Background"


async def test_a_list_is_read_page_by_page() -> None:
    first = {"metadata": {"continue": "on"}, "items": [{"metadata": {"name": "a"}}]}
    last = {"metadata": {}, "items": [{"metadata": {"name": "b"}, "kind": "Secret"}]}
    async with answering(says(200, first), says(200, last)) as server:
        found = [item async for item in server.api.list(SECRETS, None, "a=b")]
    assert [(item["kind"], item["apiVersion"], item["metadata"]["name"]) for item in found] == [
        ("Secret", "v1", "a"),
        ("Secret", "v1", "b"),
    ]
    assert [asked.path for asked in server.asked] == [
        "/api/v1/secrets?limit=20&labelSelector=a%3Db",
        "/api/v1/secrets?limit=500&labelSelector=a%3Db&continue=on",
    ]


async def test_only_so_many_requests_are_under_way_at_a_time() -> None:
    under_way, most, go = 0, 0, asyncio.Event()

    async def wait(request: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await go.wait()
        under_way -= 1
        return await says(200)(request)

    async with answering(wait) as server:
        asking = [asyncio.create_task(server.api.get(SECRETS, "team", f"s{n}")) for n in range(40)]
        await until(lambda: under_way == 32)
        go.set()
        await asyncio.gather(*asking)
    assert (len(server.asked), most) == (40, 32)


@call
async def test_a_refusal_says_why(call: Call) -> None:
    async with answering(refuses(403, "you may not")) as server:
        with pytest.raises(ApiError, match=r"^you may not$") as refused:
            await call(server.api)
    assert (refused.value.code, refused.value.causes) == (403, ())
    assert not refused.value.namespace_ends


@call
async def test_in_a_namespace_that_ends_nothing_can_be_made(call: Call) -> None:
    async with answering(refuses(403, "is being terminated", "NamespaceTerminating")) as server:
        with pytest.raises(ApiError) as refused:
            await call(server.api)
    assert refused.value.namespace_ends


@pytest.mark.parametrize(
    "answer", [refuses(409, "conflict", "NamespaceTerminating"), refuses(403, "quota", "FieldValueInvalid")]
)
async def test_other_refusals_have_other_causes(answer: Answer) -> None:
    async with answering(answer) as server:
        with pytest.raises(ApiError) as refused:
            await CALLS["create"](server.api)
    assert not refused.value.namespace_ends


@pytest.mark.parametrize("name", ["get", "delete"])
async def test_an_object_that_is_not_there_is_no_refusal(name: str) -> None:
    async with answering(refuses(404, "not found")) as server:
        assert await CALLS[name](server.api) is None


@pytest.mark.parametrize("name", ["list", "create", "merge", "apply", "replace_status"])
async def test_that_something_is_missing_is_told_where_it_matters(name: str) -> None:
    async with answering(refuses(404, "not found")) as server:
        with pytest.raises(ApiError) as refused:
            await CALLS[name](server.api)
    assert refused.value.code == 404


@pytest.mark.parametrize("body", ["<html>no</html>", "[1]", '"no"', "{}", '{"message": null}'])
async def test_a_refusal_in_other_words_is_told_as_it_is(body: str) -> None:
    async with answering(says(400, body)) as server:
        with pytest.raises(ApiError) as refused:
            await CALLS["get"](server.api)
    assert str(refused.value) in {body, "None"}


@pytest.mark.parametrize(
    "message",
    [
        "failed to create typed patch object (team/a; apps/v1, Kind=Deployment): .spec.x: field not declared",
        "failed to convert new object (team/a; apps/v1, Kind=Deployment) to proper version: quantities must",
    ],
)
async def test_an_object_that_cannot_be_read_is_refused_and_not_tried_as_if_the_server_were_away(
    message: str,
) -> None:
    async with answering(refuses(500, message)) as server:
        with pytest.raises(ApiError) as refused:
            await CALLS["apply"](server.api)
    assert (str(refused.value), refused.value.code) == (message, 500)


@pytest.mark.parametrize(
    ("answer", "another"),
    [
        (refuses(422, "the server rejected our request due to an error in our request"), True),
        (refuses(422, "status.length: Invalid value", "FieldValueInvalid"), False),
        (refuses(403, "you may not"), False),
    ],
)
async def test_a_status_for_another_object_is_told_from_one_that_is_wrong(
    answer: Answer, *, another: bool
) -> None:
    async with answering(answer) as server:
        with pytest.raises(ApiError) as refused:
            await CALLS["replace_status"](server.api)
    assert refused.value.another is another


@call
@pytest.mark.parametrize("code", [408, 410, 429, 500, 502, 503, 504])
async def test_some_answers_are_to_be_asked_for_again(call: Call, code: int) -> None:
    async with answering(refuses(code, "etcdserver: leader changed")) as server:
        with pytest.raises(ClusterUnavailable, match=f"{code}: etcdserver: leader changed"):
            await call(server.api)


@call
async def test_where_nobody_listens_the_server_is_away(call: Call) -> None:
    async with connected(f"http://127.0.0.1:{free_port()}") as api:
        with pytest.raises(ClusterUnavailable, match="does not answer: "):
            await call(api)
        assert [code for _, _, code in api.requests] == [0]


@call
async def test_an_answer_that_breaks_off_is_none(call: Call) -> None:
    async with answering(breaks_off) as server:
        with pytest.raises(ClusterUnavailable, match="does not answer: "):
            await call(server.api)


@pytest.mark.parametrize("name", ["get", "list", "create", "merge", "apply"])
async def test_an_answer_that_is_not_of_the_api_is_none(name: str) -> None:
    async with answering(says(200, "<html>please log in</html>")) as server:
        with pytest.raises(ClusterUnavailable, match=r"not JSON: .*please log in"):
            await CALLS[name](server.api)


async def test_an_answer_that_does_not_come_in_time_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentstream_operator.cluster.api._TIMEOUT", 0.05)
    async with answering(never) as server:
        with pytest.raises(ClusterUnavailable, match="does not answer: "):
            await CALLS["get"](server.api)


async def test_a_request_that_is_given_up_lets_others_have_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering(never) as server:
        asking = [asyncio.create_task(CALLS["get"](server.api)) for _ in range(32)]
        await until(lambda: len(server.asked) == 32)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        server.answers = [says(200)]
        assert await CALLS["get"](server.api) == {}


async def test_requests_are_counted_by_what_they_are_and_how_they_end() -> None:
    async with answering(says(200), says(201), refuses(404, "no"), refuses(500, "no")) as server:
        await CALLS["get"](server.api)
        await CALLS["create"](server.api)
        await CALLS["delete"](server.api)
        with pytest.raises(ClusterUnavailable):
            await CALLS["apply"](server.api)
        assert server.api.requests == {
            ("get", "secrets", 200): 1,
            ("create", "secrets", 201): 1,
            ("delete", "secrets", 404): 1,
            ("apply", "deployments", 500): 1,
        }


def lines(*events: Any, pieces: int = 1) -> Answer:
    """An answer that goes on, with an event in each line, cut into pieces of any length."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        text = b"".join(json.dumps(event).encode() + b"\n" for event in events)
        size = -(-len(text) // pieces)
        for start in range(0, len(text), size):
            await response.write(text[start : start + size])
        return response

    return answer


def raw(text: bytes) -> Answer:
    """An answer of these bytes."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=text, content_type="application/json")

    return answer


def change(kind: str, name: str, version: int = 1, **more: Any) -> dict[str, Any]:
    metadata = {"name": name, "resourceVersion": str(version)}
    return {"type": kind, "object": {"metadata": metadata, **more}}


async def test_pages_have_the_version_of_their_list() -> None:
    first = {"metadata": {"continue": "on", "resourceVersion": "7"}, "items": [{"metadata": {"name": "a"}}]}
    last = {"metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "b"}}]}
    async with answering(says(200, first), says(200, last)) as server:
        pages = [page async for page in server.api.pages(SECRETS, "team")]
    assert [page.metadata.version for page in pages] == ["7", "7"]
    assert [item["metadata"]["name"] for page in pages for item in page] == ["a", "b"]


@pytest.mark.parametrize(("size", "limit"), [(10, 500), (100_000, 83), (1_500_000, 8)])
async def test_the_larger_objects_are_the_fewer_a_page_has(size: int, limit: int) -> None:
    items = [{"metadata": {"name": "a"}, "spec": "x" * size}]
    first, last = ({"metadata": {"continue": on}, "items": items} for on in ("on", ""))
    async with answering(says(200, first), says(200, last)) as server:
        assert len([page async for page in server.api.pages(SECRETS, "team")]) == 2
    assert [one.path.partition("?")[2] for one in server.asked] == [
        "limit=20",
        f"limit={limit}&continue=on",
    ]


async def test_an_object_that_is_nested_too_deeply_keeps_no_other_from_being_read() -> None:
    page = b'{"metadata":{},"items":[{"metadata":{"name":"a"},"spec":%b},{"metadata":{"name":"b"}}]}'
    async with answering(raw(page % (b'{"x":' * 3_000 + b"1" + b"}" * 3_000))) as server:
        found = [item async for item in server.api.list(SECRETS, "team")]
    assert [item["metadata"]["name"] for item in found] == ["a", "b"]
    event = b'{"type":"ADDED","object":{"metadata":{"name":"a"},"spec":%b}}\n' % (b"[" * 3_000 + b"]" * 3_000)
    async with answering(raw(event)) as server:
        ((kind, told),) = [event async for event in server.api.watch(SECRETS, "team", "1")]
    assert (kind, told["metadata"]["name"]) == ("ADDED", "a")


@pytest.mark.parametrize("pieces", [1, 2, 7, 100])
async def test_a_watch_tells_what_happens_however_it_arrives(pieces: int) -> None:
    long = "x" * 200_000
    events = [change("ADDED", "a"), change("MODIFIED", "a", 2, data=long), change("DELETED", "a", 3)]
    async with answering(lines(*events, pieces=pieces)) as server:
        found = [event async for event in server.api.watch(SECRETS, "team", "1")]
        assert [(kind, told["metadata"]["resourceVersion"]) for kind, told in found] == [
            ("ADDED", "1"),
            ("MODIFIED", "2"),
            ("DELETED", "3"),
        ]
        assert found[1][1]["data"] == long
        path = "/api/v1/namespaces/team/secrets?watch=1&allowWatchBookmarks=true&resourceVersion=1"
        assert server.asked[0].path == f"{path}&timeoutSeconds=300"
        assert server.api.requests == {("watch", "secrets", 200): 1}


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (refuses(403, "you may not"), ApiError),
        (refuses(410, "too old"), ClusterUnavailable),
        (lines({"type": "ERROR", "object": {"code": 410, "message": "too old"}}), ClusterUnavailable),
        (lines({"type": "ERROR", "object": {"code": 403, "message": "no more"}}), ApiError),
        (breaks_off, ClusterUnavailable),
    ],
    ids=["refused", "too old", "too old by now", "refused by now", "breaks off"],
)
async def test_a_watch_says_why_it_ends(answer: Answer, failure: type[Exception]) -> None:
    async with answering(answer) as server:
        with pytest.raises(failure):
            await anext(server.api.watch(SECRETS, None, "1"))


async def test_a_watch_in_which_nothing_more_comes_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentstream_operator.cluster.api._SILENT", 0.05)

    async def silent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(json.dumps(change("ADDED", "a")).encode() + b"\n")
        return await never(request)

    async with answering(silent) as server:
        watch = server.api.watch(SECRETS, None, "1")
        assert (await anext(watch))[0] == "ADDED"
        with pytest.raises(ClusterUnavailable, match="does not answer"):
            await anext(watch)


async def test_what_has_no_namespace_is_made_without_one() -> None:
    async with answering(says(201, {"status": {"allowed": True}})) as server:
        await server.api.create(ACCESS_REVIEWS, None, {"spec": {}})
    assert server.asked[0].path.startswith("/apis/authorization.k8s.io/v1/subjectaccessreviews?")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (SECRETS.path("team", "agentstream-coder"), "/api/v1/namespaces/team/secrets/agentstream-coder"),
        (PODS.path(None), "/api/v1/pods"),
        (DEPLOYMENTS.path("team", "a", "scale"), "/apis/apps/v1/namespaces/team/deployments/a/scale"),
        (LEASES.path("team"), "/apis/coordination.k8s.io/v1/namespaces/team/leases"),
        (AGENTSTREAMS.path(None), "/apis/agentstream.dev/v1alpha1/agentstreams"),
        (
            CONSUMERGROUPS.path("team", "coder", "status"),
            "/apis/agentstream.dev/v1alpha1/namespaces/team/consumergroups/coder/status",
        ),
    ],
)
def test_an_object_is_where_its_kind_namespace_and_name_say(path: str, expected: str) -> None:
    assert path == expected
