"""The ASGI application of the external metrics API: discovery, and the backlogs of a namespace's groups."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentstream_operator.cluster.autoscaler import METRIC, labels
from agentstream_operator.metrics_api import documents, selector
from agentstream_operator.metrics_api.backlog import Backlogs, BacklogUnknownError
from agentstream_operator.metrics_api.documents import Json, MetricValue, StatusError
from agentstream_operator.metrics_api.selector import InvalidSelectorError, Selector
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.serve.authorizer import Access, Authorizer, PathAccess, ResourceAccess, ReviewFailed
from agentstream_operator.serve.request_header import NotFromProxy, RequestHeaderConfig, UserInfo

_log = logging.getLogger(__name__)
_METRIC = f"/apis/{documents.GROUP_VERSION}/namespaces/{{namespace}}/{{metric}}"
_LONGEST_SELECTOR = 4_096

ConfigSource = Callable[[], RequestHeaderConfig | None]
"""Returns the current request-header configuration; None before it has been read."""


def application(
    store: ResourceIndex,
    backlogs: Backlogs,
    authorizer: Authorizer,
    config: ConfigSource,
    count_response: Callable[[int], object] = lambda _: None,
) -> ASGIApp:
    """Builds the application; `count_response` is called with the HTTP status of every response."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(StatusError, _on_status_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(Exception, _on_failure)

    async def document(request: Request, accept: Annotated[str, Header()] = "") -> Response:
        path = request.scope["path"]
        await _authorize(authorizer, _user(request), PathAccess(path))
        if not documents.accepts_json(accept):
            raise StatusError(HTTPStatus.NOT_ACCEPTABLE, "only application/json is served")
        return _json(documents.DISCOVERY[path])

    async def backlog(
        request: Request,
        namespace: str,
        metric: str,
        label_selector: Annotated[str, Query(alias="labelSelector", max_length=_LONGEST_SELECTOR)] = "",
    ) -> Response:
        wanted = ResourceAccess("list", documents.GROUP, documents.VERSION, metric, namespace)
        await _authorize(authorizer, _user(request), wanted)
        if metric != METRIC:
            raise StatusError(HTTPStatus.NOT_FOUND, f"metric {metric} not found; the only one is {METRIC}")
        try:
            selected = _selected(store, namespace, selector.parse(label_selector))
        except InvalidSelectorError as error:
            raise StatusError(HTTPStatus.BAD_REQUEST, str(error)) from error
        found = await asyncio.gather(*(_value(backlogs, group) for group in selected))
        if not found:
            matching = f" matches {label_selector!r}" if label_selector else ""
            raise StatusError(HTTPStatus.NOT_FOUND, f"no ConsumerGroup in namespace {namespace}{matching}")
        return _json(documents.values(found))

    for path in documents.DISCOVERY:
        app.add_api_route(path, document, methods=["GET"])
    app.add_api_route(_METRIC, backlog, methods=["GET"])
    return _Authentication(app, config, count_response)


@dataclass(frozen=True, slots=True, eq=False)
class _Authentication:
    """Passes on only requests that a front proxy sends for a user."""

    app: ASGIApp
    config: ConfigSource
    count_response: Callable[[int], object]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        config, state = self.config(), scope["state"]
        respond: ASGIApp = self.app
        if config is None:
            respond = _turned_away(
                HTTPStatus.SERVICE_UNAVAILABLE, "client CA of the front proxy not read yet"
            )
        else:
            try:
                state["user"] = config.authenticate(state.get("peer"), scope["headers"])
            except NotFromProxy as error:
                respond = _turned_away(HTTPStatus.UNAUTHORIZED, str(error))

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.count_response(message["status"])
            await send(message)

        await respond(scope, receive, counting_send)


def _user(request: Request) -> UserInfo:
    user: UserInfo = request.state.user
    return user


async def _authorize(authorizer: Authorizer, user: UserInfo, access: Access) -> None:
    try:
        allowed = await authorizer.allows(user, access)
    except ReviewFailed as error:
        raise StatusError(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error
    if not allowed:
        raise StatusError(HTTPStatus.FORBIDDEN, f'User "{user.name}" cannot {access}')


def _selected(store: ResourceIndex, namespace: str, wanted: Selector) -> Iterable[ConsumerGroup]:
    """Finds the groups of a namespace that a selector matches."""
    name = wanted.only("group")
    if name is not None:
        only = store.groups.get(ResourceKey("ConsumerGroup", namespace, name))
        candidates = [only] if only is not None else []
    else:
        candidates = [group for key, group in store.groups.items() if key.namespace == namespace]
    return (group for group in candidates if wanted.matches(labels(group)))


async def _value(backlogs: Backlogs, group: ConsumerGroup) -> MetricValue:
    try:
        backlog = await backlogs.of(group)
    except BacklogUnknownError as error:
        # the autoscaler would act on any number; without one it leaves the replicas as they are
        raise StatusError(HTTPStatus.SERVICE_UNAVAILABLE, f"backlog unknown: {error}") from error
    return MetricValue(labels(group), backlog.messages, backlog.at)


def _json(body: Json, code: int = HTTPStatus.OK) -> Response:
    return Response(msgspec.json.encode(body), code, media_type="application/json")


def _status(code: int, message: str) -> Response:
    return _json(documents.status(code, message), code)


def _turned_away(code: int, message: str) -> Response:
    """Answers somebody who is no front proxy, and ends the connection."""
    response = _status(code, message)
    response.headers["Connection"] = "close"
    return response


async def _on_status_error(_: Request, error: Any) -> Response:
    return _status(error.code, error.message)


async def _on_http_exception(request: Request, error: Any) -> Response:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return _status(HTTPStatus.NOT_FOUND, f"path {request.scope['path']} not found")
    return _status(error.status_code, str(error.detail))


async def _on_invalid_request(_: Request, error: Any) -> Response:
    first = error.errors()[0]
    return _status(HTTPStatus.BAD_REQUEST, f"{first['loc'][-1]}: {first['msg']}")


async def _on_failure(request: Request, error: Exception) -> Response:
    _log.error("request for %r failed", request.scope["path"], exc_info=error)
    return _status(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; see the log of the metrics server")
