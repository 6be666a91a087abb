"""What is answered to whom, without a network."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.metrics_api.app import application
from agentstream_operator.metrics_api.backlog import Backlog, BacklogUnknownError
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.serve.authorizer import Access, PathAccess, ResourceAccess
from agentstream_operator.serve.request_header import RequestHeaderConfig, UserInfo
from support.resources import a_group, a_stream

ROOT = "/apis/external.metrics.k8s.io/v1beta1"
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PROXY = {"x-remote-user": "jane"}
TRUST = RequestHeaderConfig("PEM", frozenset({"proxy"}))


class Backlogs:
    """Knows so many messages of each group, and nothing of the rest."""

    def __init__(self, **known: int) -> None:
        self.known = known

    async def of(self, group: ConsumerGroup) -> Backlog:
        if group.metadata.name == "broken":
            raise ZeroDivisionError
        if group.metadata.name not in self.known:
            raise BacklogUnknownError("the server is away")
        return Backlog(self.known[group.metadata.name], AT)


class Allowing:
    """Lets everybody have everything but what is refused."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.asked: list[tuple[str, Access]] = []

    async def allows(self, user: UserInfo, access: Access) -> bool:
        self.asked.append((user.name, access))
        return not isinstance(access, ResourceAccess) or access.namespace not in self.refused


class Site:
    """The application with some groups."""

    def __init__(self, *, trust: RequestHeaderConfig | None = TRUST) -> None:
        store = ResourceIndex()
        store.put(a_stream())
        for name in ("coder", "planner", "lost", "broken"):
            store.put(a_group(name, namespace="lost" if name in {"lost", "broken"} else "team"))
        store.put(a_group("coder", namespace="other"))
        self.codes: list[int] = []
        self.authorizer = Allowing("secret")
        backlogs: Any = Backlogs(coder=3, planner=2_000)
        authorizer: Any = self.authorizer
        self.app = application(store, backlogs, authorizer, lambda: trust, self.codes.append)

    async def get(
        self,
        path: str,
        headers: dict[str, str] = PROXY,
        *,
        method: str = "GET",
        peer: tuple[str, ...] | None = ("proxy",),
    ) -> tuple[int, dict[str, Any]]:
        """Asks. Returns the status and what was answered."""
        raw, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": raw,
            "raw_path": raw.encode(errors="replace"),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "state": {"peer": peer},
            "server": ("localhost", 443),
            "scheme": "https",
            "http_version": "1.1",
        }
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            sent.append(message)

        try:
            await self.app(scope, receive, send)
        except ZeroDivisionError:
            # what fails is logged by who serves
            assert sent
        kinds = dict(sent[0]["headers"])
        assert kinds[b"content-type"] == b"application/json"
        assert self.codes[-1] == sent[0]["status"]
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], json.loads(body) if body else {}


def metric(namespace: str = "team", selector: str = "", name: str = "agentstream-backlog") -> str:
    return f"{ROOT}/namespaces/{namespace}/{name}" + (f"?labelSelector={quote(selector)}" if selector else "")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/apis", "APIGroupList"),
        ("/apis/external.metrics.k8s.io", "APIGroup"),
        (ROOT, "APIResourceList"),
    ],
)
async def test_discovery(path: str, kind: str) -> None:
    site = Site()
    assert (await site.get(path))[1]["kind"] == kind
    assert site.authorizer.asked == [("jane", PathAccess(path))]
    accept = {"accept": "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"}
    code, answer = await site.get(path, PROXY | accept)
    assert (code, answer["reason"]) == (406, "NotAcceptable")


async def test_there_are_no_schemas() -> None:
    assert (await Site().get("/openapi/v2"))[1]["paths"] == {}
    assert (await Site().get("/openapi/v3"))[1] == {"paths": {}}


@pytest.mark.parametrize(
    ("selector", "values"),
    [
        ("group=coder,stream=tasks", {"coder": "3"}),
        ("group=planner", {"planner": "2k"}),
        ("stream=tasks", {"coder": "3", "planner": "2k"}),
        ("", {"coder": "3", "planner": "2k"}),
        ("group in (coder,nobody)", {"coder": "3"}),
    ],
)
async def test_one_item_for_each_group_that_is_selected(selector: str, values: dict[str, str]) -> None:
    site = Site()
    code, answer = await site.get(
        metric(selector=selector), PROXY | {"accept": "application/vnd.kubernetes.protobuf"}
    )
    assert (code, answer["kind"]) == (200, "ExternalMetricValueList")
    assert {item["metricLabels"]["group"]: item["value"] for item in answer["items"]} == values
    assert {item["timestamp"] for item in answer["items"]} == {"2026-01-02T03:04:05Z"}
    wanted = ResourceAccess("list", "external.metrics.k8s.io", "v1beta1", "agentstream-backlog", "team")
    assert site.authorizer.asked == [("jane", wanted)]


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        (metric(name="agentstream-lag"), 404, "NotFound"),
        (metric("empty"), 404, "NotFound"),
        (metric(selector="group=nobody"), 404, "NotFound"),
        (metric(selector="group=coder,stream=other"), 404, "NotFound"),
        (metric(selector="group==="), 400, "BadRequest"),
        (metric(selector="a" * 5_000), 400, "BadRequest"),
        (metric("lost", "group=lost"), 503, "ServiceUnavailable"),
        (metric("lost", "group=broken"), 500, "InternalError"),
        (metric("secret"), 403, "Forbidden"),
        ("/", 404, "NotFound"),
        ("/apis/", 404, "NotFound"),
        (f"{ROOT}/", 404, "NotFound"),
        (f"{ROOT}/namespaces/team", 404, "NotFound"),
        ("/docs", 404, "NotFound"),
        ("/openapi.json", 404, "NotFound"),
    ],
)
async def test_what_is_refused_is_a_status(path: str, code: int, reason: str) -> None:
    found, answer = await Site().get(path)
    assert (found, answer["kind"], answer["code"], answer["reason"]) == (code, "Status", code, reason)
    assert answer["message"]


async def test_of_several_groups_all_must_be_known() -> None:
    site = Site()
    assert (await site.get(metric("lost")))[0] in {500, 503}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_nothing_can_be_changed(method: str) -> None:
    code, answer = await Site().get(metric(), method=method)
    assert (code, answer["reason"]) == (405, "MethodNotAllowed")


async def test_only_a_front_proxy_is_let_in() -> None:
    site = Site()
    for peer in (None, (), ("somebody",)):
        for path in (ROOT, metric(), "/nowhere"):
            code, answer = await site.get(path, peer=peer)
            assert (code, answer["reason"]) == (401, "Unauthorized")
    assert (await site.get(ROOT, {}))[0] == 401
    assert site.authorizer.asked == []


async def test_before_it_is_known_whom_to_believe_nobody_is() -> None:
    assert (await Site(trust=None).get(ROOT))[0] == 503


@given(
    path=st.text(alphabet="/aps%.~é \x00\u2028", max_size=20),
    query=st.text(alphabet="labelSctor=&,!()%é\x00+", max_size=30),
)
async def test_no_path_and_no_query_makes_it_fail(path: str, query: str) -> None:
    site = Site()
    for found in (
        f"/{path}?{query}",
        f"{ROOT}/namespaces/{path}/agentstream-backlog?{query}",
        f"{metric()}?{query}",
    ):
        code, _ = await site.get(found)
        assert code in {200, 400, 404, 503}
    code, _ = await site.get(metric(selector=query))
    assert code in {200, 400, 404}
