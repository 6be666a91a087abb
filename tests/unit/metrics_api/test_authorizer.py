"""Who may ask: one question to the API server for all who want to know the same, for some seconds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentstream_operator.cluster.api import ApiError
from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.metrics_api import authorizer as module
from agentstream_operator.metrics_api.authorizer import AccessRequest, Authorizer
from agentstream_operator.metrics_api.documents import StatusError
from agentstream_operator.metrics_api.request_header import UserInfo
from support.clock import run_virtually

JANE = UserInfo("jane", ("devs",), "7", (("scope", ("a",)),))
WISH = AccessRequest(namespace="team", metric="agentstream-backlog")


class Reviews:
    """The API server; answers after a tenth of a second."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer: bool | Exception | dict[str, Any] = True

    async def create(self, kind: Any, namespace: str | None, body: dict[str, Any]) -> dict[str, Any]:
        assert (kind.plural, namespace) == ("subjectaccessreviews", None)
        self.asked.append(body["spec"])
        await asyncio.sleep(0.1)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer if isinstance(self.answer, dict) else {"status": {"allowed": self.answer}}


def asking(test: Any) -> None:
    """Runs a test in virtual time."""

    async def run() -> None:
        api: Any = Reviews()
        authorizer = Authorizer(api, asyncio.get_running_loop().time)
        try:
            await test(authorizer, api)
        finally:
            await authorizer.close()

    run_virtually(run())


async def refused(authorizer: Authorizer, caller: UserInfo = JANE, wish: AccessRequest = WISH) -> int:
    """The code with which a caller is refused; 0 if it is not."""
    try:
        await authorizer.check(caller, wish)
    except StatusError as error:
        return error.code
    return 0


def test_what_is_asked() -> None:
    async def test(authorizer: Authorizer, api: Reviews) -> None:
        await authorizer.check(JANE, WISH)
        await authorizer.check(UserInfo("joe"), AccessRequest(path="/apis"))
        assert api.asked == [
            {
                "user": "jane",
                "groups": ["devs"],
                "uid": "7",
                "extra": {"scope": ["a"]},
                "resourceAttributes": {
                    "group": "external.metrics.k8s.io",
                    "version": "v1beta1",
                    "namespace": "team",
                    "resource": "agentstream-backlog",
                    "verb": "list",
                },
            },
            {"user": "joe", "groups": [], "nonResourceAttributes": {"path": "/apis", "verb": "get"}},
        ]

    asking(test)


def test_the_clusters_masters_are_not_asked_about() -> None:
    async def test(authorizer: Authorizer, api: Reviews) -> None:
        api.answer = False
        await authorizer.check(UserInfo("root", ("system:masters",)), WISH)
        assert api.asked == []

    asking(test)


@pytest.mark.parametrize(("allowed", "code", "seconds"), [(True, 0, 10.0), (False, 403, 5.0)])
def test_an_answer_counts_for_some_seconds(allowed, code, seconds):
    async def test(authorizer: Authorizer, api: Reviews) -> None:
        api.answer = allowed
        assert await refused(authorizer) == code
        await asyncio.sleep(seconds - 0.01)
        api.answer = not allowed
        assert await refused(authorizer) == code
        assert len(api.asked) == 1
        await asyncio.sleep(0.02)
        assert await refused(authorizer) == (403 if allowed else 0)
        assert len(api.asked) == 2
        assert authorizer.reviews == {"allowed": 1, "denied": 1}

    asking(test)


def test_all_who_ask_meanwhile_wait_for_the_same_answer() -> None:
    async def test(authorizer: Authorizer, api: Reviews) -> None:
        assert await asyncio.gather(*(refused(authorizer) for _ in range(50))) == [0] * 50
        assert len(api.asked) == 1

    asking(test)


def test_who_gives_up_waiting_takes_the_answer_from_nobody() -> None:
    async def test(authorizer: Authorizer, api: Reviews) -> None:
        first = asyncio.create_task(refused(authorizer))
        second = asyncio.create_task(refused(authorizer))
        await asyncio.sleep(0.05)
        first.cancel()
        assert await second == 0
        assert len(api.asked) == 1

    asking(test)


def test_who_differs_in_anything_is_asked_about_anew() -> None:
    async def test(authorizer: Authorizer, api: Reviews) -> None:
        callers = (JANE, UserInfo("jane", ("devs",)), UserInfo("jane", ("ops",), "7"), UserInfo("joe"))
        wishes = (WISH, AccessRequest(namespace="other", metric=WISH.metric), AccessRequest(path="/apis"))
        await asyncio.gather(*(authorizer.check(c, w) for c in callers for w in wishes))
        assert len(api.asked) == 12

    asking(test)


@pytest.mark.parametrize(
    "answer",
    [ApiError(403, "no"), ClusterUnavailable("away"), {}, {"status": None}],
    ids=["refused", "away", "empty", "nonsense"],
)
def test_without_an_answer_nobody_is_let_in_and_the_next_one_asks_again(answer: Any) -> None:
    async def test(authorizer: Authorizer, api: Reviews) -> None:
        api.answer = answer
        assert await asyncio.gather(*(refused(authorizer) for _ in range(3))) == [503] * 3
        api.answer = True
        assert await refused(authorizer) == 0
        assert authorizer.reviews == {"error": 1, "allowed": 1}

    asking(test)


def test_only_so_many_answers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHE_SIZE", 10)

    async def test(authorizer: Authorizer, api: Reviews) -> None:
        for number in range(30):
            await authorizer.check(UserInfo(f"u{number}"), WISH)
        assert len(authorizer._decisions) == 10
        await authorizer.check(UserInfo("u29"), WISH)
        assert len(api.asked) == 30

    asking(test)


def test_at_the_end_nobody_waits_for_ever() -> None:
    async def test(authorizer: Authorizer, api: Reviews) -> None:
        waiting = asyncio.create_task(refused(authorizer))
        await asyncio.sleep(0.05)
        await authorizer.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asking(test)
