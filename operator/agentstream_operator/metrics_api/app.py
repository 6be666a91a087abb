"""What is answered: discovery, and the backlog of groups in a namespace."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentstream_operator.cluster.autoscaler import METRIC, labels
from agentstream_operator.metrics_api import documents, selector
from agentstream_operator.metrics_api.authorizer import AccessRequest, Authorizer
from agentstream_operator.metrics_api.backlog import Backlogs, Unknown
from agentstream_operator.metrics_api.documents import Json, Refused, Value
from agentstream_operator.metrics_api.request_header import RequestHeaderConfig, UserInfo
from agentstream_operator.metrics_api.selector import NoSelector, Selector
from agentstream_operator.reconcile.state.index import Store
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey

_log = logging.getLogger(__name__)
_ROOT = f"/apis/{documents.GROUP_VERSION}"
_LONGEST_SELECTOR = 4_096

Answered = Callable[[int], object]
"""Called with the code of every answer."""


def application(
    store: Store,
    backlogs: Backlogs,
    authorizer: Authorizer,
    trust: Callable[[], RequestHeaderConfig | None],
    answered: Answered = lambda _: None,
) -> ASGIApp:
    """The application.

    Args:
        store: which groups there are.
        backlogs: counts their work.
        authorizer: decides who may ask.
        trust: whom to believe about who asks.
        answered: counts answers.
    """
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _unknown)
    app.add_exception_handler(RequestValidationError, _wrong)
    app.add_exception_handler(Exception, _failed)

    async def document(request: Request, accept: Annotated[str, Header()] = "") -> Response:
        path = request.url.path
        await authorizer.check(_caller(request), AccessRequest(path=path))
        if not documents.takes_json(accept):
            raise Refused(HTTPStatus.NOT_ACCEPTABLE, "only application/json is served")
        return _json(_DOCUMENTS[path]())

    async def backlog(
        request: Request,
        namespace: str,
        metric: str,
        label_selector: Annotated[str, Query(alias="labelSelector", max_length=_LONGEST_SELECTOR)] = "",
    ) -> Response:
        await authorizer.check(_caller(request), AccessRequest(namespace=namespace, metric=metric))
        if metric != METRIC:
            raise Refused(HTTPStatus.NOT_FOUND, f"there is no metric {metric}, only {METRIC}")
        selected = _selected(store, namespace, _parse(label_selector))
        found = await asyncio.gather(*(_value(backlogs, group) for group in selected))
        if not found:
            message = (
                f"there is no ConsumerGroup in {namespace} with the labels {label_selector or 'asked for'}"
            )
            raise Refused(HTTPStatus.NOT_FOUND, message)
        return _json(documents.values(found))

    for path in _DOCUMENTS:
        app.add_api_route(path, document, methods=["GET"])
    app.add_api_route(f"{_ROOT}/namespaces/{{namespace}}/{{metric}}", backlog, methods=["GET"])
    return _Gate(app, trust, answered)


_DOCUMENTS: dict[str, Callable[[], Json]] = {
    "/apis": documents.groups,
    f"/apis/{documents.GROUP}": documents.group,
    _ROOT: documents.resources,
    "/openapi/v2": documents.openapi_v2,
    "/openapi/v3": documents.openapi_v3,
}


class _Gate:
    """Lets nobody in for whom no front proxy speaks."""

    def __init__(
        self, app: ASGIApp, trust: Callable[[], RequestHeaderConfig | None], answered: Answered
    ) -> None:
        self._app = app
        self._trust = trust
        self._answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trust, state = self._trust(), scope["state"]
        answer: ASGIApp = self._app
        if trust is None:
            answer = _status(HTTPStatus.SERVICE_UNAVAILABLE, "it is not known yet whom to believe")
        else:
            try:
                state["caller"] = trust.caller(state.get("peer"), scope["headers"])
            except Refused as error:
                answer = _status(error.code, error.message)

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._answered(message["status"])
            await send(message)

        await answer(scope, receive, count)


def _caller(request: Request) -> UserInfo:
    caller: UserInfo = request.state.caller
    return caller


def _parse(text: str) -> Selector:
    try:
        return selector.parse(text)
    except NoSelector as error:
        raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from error


def _selected(store: Store, namespace: str, wanted: Selector) -> Iterable[ConsumerGroup]:
    """The groups of a namespace with these labels."""
    name = wanted.only("group")
    if name is not None:
        only = store.groups.get(ResourceKey("ConsumerGroup", namespace, name))
        candidates = [only] if only is not None else []
    else:
        candidates = [group for key, group in store.groups.items() if key.namespace == namespace]
    return (group for group in candidates if wanted.matches(labels(group)))


async def _value(backlogs: Backlogs, group: ConsumerGroup) -> Value:
    try:
        backlog = await backlogs.of(group)
    except Unknown as error:
        # a number would be believed; without one the autoscaler leaves everything as it is
        raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, f"the backlog is not known: {error}") from error
    return Value(labels(group), backlog.messages, backlog.at)


def _json(body: Json, code: int = HTTPStatus.OK) -> Response:
    return Response(msgspec.json.encode(body), code, media_type="application/json")


def _status(code: int, message: str) -> Response:
    return _json(documents.status(code, message), code)


async def _refused(request: Request, error: Any) -> Response:
    del request
    return _status(error.code, error.message)


async def _unknown(request: Request, error: Any) -> Response:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return _status(HTTPStatus.NOT_FOUND, f"nothing is at {request.url.path}")
    return _status(error.status_code, str(error.detail))


async def _wrong(request: Request, error: Any) -> Response:
    del request
    first = error.errors()[0]
    return _status(HTTPStatus.BAD_REQUEST, f"{first['loc'][-1]}: {first['msg']}")


async def _failed(request: Request, error: Exception) -> Response:
    _log.error("%s failed", request.url.path, exc_info=error)
    return _status(HTTPStatus.INTERNAL_SERVER_ERROR, "this should not have happened; the log says more")
