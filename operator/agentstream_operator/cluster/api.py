"""Requests to the API server: JSON in and out, over the official client's session and credentials.

The client's models are not used: the bodies are built by `cluster`, and converting thousands of objects into
models would cost more than everything else.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec
from aiohttp import ClientError
from kubernetes.aio.client.api_client import ApiClient

from agentstream_operator.cluster.answers import Page, decode, decode_page
from agentstream_operator.cluster.kinds import ACCOUNTS, NAMESPACES, SELF_REVIEWS, ApiKind
from agentstream_operator.cluster.labels import FIELD_MANAGER
from agentstream_operator.cluster.port import ClusterRefused, ClusterUnavailable

MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"
_JSON, _STEPS = "application/json", "application/json-patch+json"
_PAGE_SIZE, _FIRST_PAGE, _FEWEST, _MOST = 8 * 2**20, 20, 8, 500
"""Bytes of a page of a list, and objects: an object may have 1.5 MB."""

_TIMEOUT = 15.0
_WATCHED = 300
"""Seconds after which the API server ends a watch."""

_SILENT = 150.0
"""Seconds of silence after which a watch counts as dead: bookmarks come about every minute."""

_SHOWN = 200
_AT_A_TIME = 32
"""Concurrent requests: the API server would queue more."""

# 410: the resource version of a list has expired
_RETRIED = frozenset({408, 410, 429, 500, 502, 503, 504})

_UNREADABLE = ("failed to create typed patch object", "failed to convert new object")
"""Beginnings of the messages by which the API server refuses invalid bodies with code 500."""

Json = dict[str, Any]
T = TypeVar("T")


class ApiError(ClusterRefused):
    """The API server refused a request with an HTTP status, for causes that the answer may list."""

    def __init__(self, code: int, message: str, causes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.causes = causes

    @property
    def namespace_ends(self) -> bool:
        """Whether nothing can be created because the namespace is being deleted."""
        return self.code == 403 and "NamespaceTerminating" in self.causes  # noqa: PLR2004

    @property
    def another(self) -> bool:
        """Whether the test of a JSON patch failed: the object was replaced by another one of its name."""
        # an invalid object has causes
        return self.code == 422 and not self.causes  # noqa: PLR2004


class Api:
    """Sends requests to the API server.

    All methods raise `ApiError` if the request is refused, and `ClusterUnavailable` without an answer.
    `requests` counts them by verb, resource and HTTP status (0: no answer).
    """

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._slots = asyncio.Semaphore(_AT_A_TIME)
        self._date: str | None = None  # of the latest answer
        self.requests: Counter[tuple[str, str, int]] = Counter()

    async def get(self, kind: ApiKind, namespace: str | None, name: str) -> Json | None:
        """Returns an object, or None if it does not exist."""
        try:
            return _object(await self._send("get", kind, "GET", kind.path(namespace, name)))
        except ApiError as error:
            if error.code == 404:  # noqa: PLR2004
                return None
            raise

    async def version(self) -> tuple[str, datetime | None]:
        """Returns the version of the API server, such as `v1.34.1`, and its time to the second."""
        found = _object(await self._send("get", NAMESPACES, "GET", "/version"))
        return str(found["gitVersion"]), parsedate_to_datetime(self._date) if self._date else None

    async def may(self, verb: str, kind: ApiKind, namespace: str, part: str = "") -> bool:
        """Tells whether the caller may do something (SelfSubjectAccessReview); in all namespaces if empty."""
        group, _, version = kind.api_version.rpartition("/")
        attributes = {"verb": verb, "group": group, "version": version, "resource": kind.plural}
        attributes |= {"subresource": part, "namespace": namespace}
        body = {"apiVersion": SELF_REVIEWS.api_version, "kind": SELF_REVIEWS.kind}
        body["spec"] = {"resourceAttributes": attributes}  # type: ignore[assignment]
        return bool((await self.create(SELF_REVIEWS, None, body))["status"]["allowed"])

    async def discovers(self, kind: ApiKind) -> bool:
        """Returns whether discovery lists a kind, as it does soon after the CRD is there; Kopf needs it."""
        group, _, _ = kind.api_version.partition("/")
        groups = _object(await self._send("get", kind, "GET", "/apis"))["groups"]
        if all(each["name"] != group for each in groups):
            return False
        try:
            answer = await self._send("get", kind, "GET", f"/apis/{kind.api_version}")
        except ApiError as error:
            if error.code == 404:  # noqa: PLR2004
                return False
            raise
        return any(each["name"] == kind.plural for each in _object(answer)["resources"])

    async def list(self, kind: ApiKind, namespace: str | None, selector: str = "") -> AsyncIterator[Json]:
        """Yields every object of a kind in a namespace (None: all) with a label selector, in one version."""
        async for page in self.pages(kind, namespace, selector):
            for item in page:
                yield {"apiVersion": kind.api_version, "kind": kind.kind, **item}

    async def pages(self, kind: ApiKind, namespace: str | None, selector: str = "") -> AsyncIterator[Page]:
        """Yields a list in pages, of `_PAGE_SIZE` bytes or a few more; its version is for `watch`."""
        query = {"limit": str(_FIRST_PAGE)} | ({"labelSelector": selector} if selector else {})
        while True:
            data = await self._send("list", kind, "GET", kind.path(namespace), query=query)
            page = _parse(decode_page, data)
            size = len(data) // (len(page.items) or 1)
            rest = page.metadata.rest
            del data
            yield page
            if not rest:
                return
            limit = min(max(_PAGE_SIZE // (size or 1), _FEWEST), _MOST)
            query = {**query, "limit": str(limit), "continue": rest}

    async def watch(
        self, kind: ApiKind, namespace: str | None, version: str
    ) -> AsyncIterator[tuple[str, Json]]:
        """Watches a kind from a resource version on, until the API server ends the answer.

        Yields `ADDED`, `MODIFIED` or `DELETED` with the object, or `BOOKMARK` with a version only.
        Raises `ClusterUnavailable` also after a long silence, and if the version is too old.
        """
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(_WATCHED),
        }
        async for line in self._lines(kind, kind.path(namespace), query):
            event = _object(line)
            if event["type"] == "ERROR":
                _refuse(int(event["object"].get("code", 500)), msgspec.json.encode(event["object"]))
            yield event["type"], event["object"]

    async def token(self, namespace: str, account: str, seconds: int) -> str:
        """Returns a new token of a ServiceAccount (TokenRequest), for the API server's own audience."""
        body = {"spec": {"expirationSeconds": seconds}}
        path = ACCOUNTS.path(namespace, account, "token")
        return str(_object(await self._send("create", ACCOUNTS, "POST", path, body))["status"]["token"])

    async def create(self, kind: ApiKind, namespace: str | None, body: Json) -> Json:
        """Creates an object; `ApiError` with code 409 if it exists."""
        return _object(await self._send("create", kind, "POST", kind.path(namespace), body, query=_MANAGED))

    async def merge(self, kind: ApiKind, namespace: str, name: str, body: Json, part: str = "") -> Json:
        """Changes fields of an object, or of a subresource, by a merge patch (RFC 7396)."""
        path = kind.path(namespace, name, part)
        return _object(await self._send("patch", kind, "PATCH", path, body, content=MERGE, query=_MANAGED))

    async def trial(self, kind: ApiKind, namespace: str, body: Json, name: str = "") -> Json:
        """Returns what creating an object, or with a name changing one, would come to; changes nothing."""
        method, content = ("PATCH", MERGE) if name else ("POST", _JSON)
        path = kind.path(namespace, name)
        return _object(await self._send("trial", kind, method, path, body, content=content, query=_TRIED))

    async def apply(self, kind: ApiKind, body: Json, *, force: bool, manager: str = FIELD_MANAGER) -> Json:
        """Applies an object with all fields to own by server-side apply.

        `force` takes over fields of other managers; without it, a conflict is an `ApiError` with code 409.
        """
        path = kind.path(body["metadata"]["namespace"], body["metadata"]["name"])
        query = {"fieldManager": manager} | ({"force": "true"} if force else {})
        body = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        return _object(await self._send("apply", kind, "PATCH", path, body, content=APPLY, query=query))

    async def replace_status(self, kind: ApiKind, namespace: str, name: str, uid: str, status: Json) -> None:
        """Replaces the status of the object with this uid; `ApiError.another` if the uid differs.

        Only a JSON patch (RFC 6902) can test the uid: with others the API server ignores it.
        """
        steps: list[Json] = [
            {"op": "test", "path": "/metadata/uid", "value": uid},
            {"op": "add", "path": "/status", "value": status},
        ]
        path = kind.path(namespace, name, "status")
        await self._send("patch", kind, "PATCH", path, steps, content=_STEPS, query=_MANAGED)

    async def delete(self, kind: ApiKind, namespace: str, name: str, uid: str | None = None) -> None:
        """Deletes an object, if it exists, and its dependents in the background.

        With a uid, only the object that has it; `ApiError` with code 409 if another one has the name.
        """
        options: Json = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if uid is not None:
            options |= {"preconditions": {"uid": uid}}
        try:
            await self._send("delete", kind, "DELETE", kind.path(namespace, name), options)
        except ApiError as error:
            if error.code != 404:  # noqa: PLR2004
                raise

    async def _lines(self, kind: ApiKind, path: str, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        """Yields the lines of a streaming answer."""
        url = f"{self._client.configuration.host}{quote(path)}?{urlencode(query)}"
        code, rest = 0, b""
        try:
            response = await self._client.call_api(
                "GET", url, header_params=await self._headers(_JSON), _request_timeout=_WATCHED + _TIMEOUT
            )
            answer, code = response.response, response.status
            try:
                if code >= 400:  # noqa: PLR2004
                    _refuse(code, await answer.read())
                while True:
                    async with asyncio.timeout(_SILENT):
                        more = await answer.content.readany()
                    if not more:
                        return
                    *lines, rest = (rest + more).split(b"\n")
                    for line in lines:
                        yield line
            finally:
                answer.close()
        except (ClientError, TimeoutError, OSError, ssl.SSLError) as error:
            raise _no_answer(error) from error
        finally:
            self.requests["watch", kind.plural, code] += 1

    async def _headers(self, content: str) -> dict[str, str]:
        headers = {"Accept": _JSON, "Content-Type": content, "User-Agent": "agentstream-operator"}
        for auth in (await self._client.configuration.auth_settings()).values():
            headers[auth["key"]] = auth["value"]
        return headers

    async def _send(
        self,
        verb: str,
        kind: ApiKind,
        method: str,
        path: str,
        body: Json | Sequence[Json] | None = None,
        *,
        content: str = _JSON,
        query: Mapping[str, str] | None = None,
    ) -> bytes:
        url = f"{self._client.configuration.host}{quote(path)}" + (f"?{urlencode(query)}" if query else "")
        code = 0
        try:
            async with self._slots:
                headers = await self._headers(content)
                response = await self._client.call_api(
                    method, url, header_params=headers, body=body, _request_timeout=_TIMEOUT
                )
                code, self._date = response.status, response.response.headers.get("Date")
                data: bytes = await response.response.read()
        except (ClientError, TimeoutError, OSError, ssl.SSLError) as error:
            raise _no_answer(error) from error
        finally:
            self.requests[verb, kind.plural, code] += 1
        if code >= 400:  # noqa: PLR2004
            _refuse(code, data)
        return data


def raise_refusal(error: ApiError, what: str) -> None:
    """Raises `ClusterRefused` for an object, unless it is gone or its namespace is being deleted."""
    if not error.namespace_ends and error.code != 404:  # noqa: PLR2004
        raise ClusterRefused(f"the API server refused {what}: {error}") from error


_MANAGED = {"fieldManager": FIELD_MANAGER}
_TRIED = {"dryRun": "All", "fieldValidation": "Strict", "fieldManager": "agentstream-plan"}


def _no_answer(error: Exception) -> ClusterUnavailable:
    return ClusterUnavailable(f"the API server does not answer: {str(error) or type(error).__name__}")


def _object(data: bytes) -> Json:
    return _parse(decode, data)


def _parse(parse: Callable[[bytes], T], data: bytes) -> T:
    try:
        return parse(data)
    except msgspec.DecodeError as error:
        said = data.decode(errors="replace")[:_SHOWN]
        raise ClusterUnavailable(f"the API server's answer is not JSON: {said}") from error


def _refuse(code: int, data: bytes) -> None:
    """Raises the error that an answer with this code and body means."""
    try:
        status = decode(data)
        message = str(status["message"])
        causes = tuple(str(c.get("reason", "")) for c in (status.get("details") or {}).get("causes") or ())
    except (msgspec.DecodeError, KeyError, AttributeError, TypeError):
        message, causes = data.decode(errors="replace")[:_SHOWN], ()
    if code in _RETRIED and not message.startswith(_UNREADABLE):
        raise ClusterUnavailable(f"the API server answered {code}: {message}")
    raise ApiError(code, message, causes)
