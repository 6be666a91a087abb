"""Requests to the API server: JSON in and out, over the official client's session and credentials.

The client's own models are left aside: what is sent is built by `cluster`, of what comes back only a few
fields matter, and turning thousands of objects into models would cost more than all else.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from aiohttp import ClientError
from kubernetes.aio.client.api_client import ApiClient

from agentstream_operator.cluster.kinds import ApiKind
from agentstream_operator.cluster.labels import FIELD_MANAGER
from agentstream_operator.cluster.port import ClusterRefused, ClusterUnavailable

MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"
_JSON, _STEPS = "application/json", "application/json-patch+json"
_PAGE = 500
_TIMEOUT = 15.0
_WATCHED = 300
"""Seconds after which the API server is to end a watch."""

_SILENT = 150.0
"""Seconds without a word after which a watch counts as dead: a bookmark comes about every minute."""

_SHOWN = 200
_AT_A_TIME = 32
"""Requests under way: with more the API server only lets them wait."""

# 410: a list took so long that its moment is over
_RETRIED = frozenset({408, 410, 429, 500, 502, 503, 504})

_UNREADABLE = ("failed to create typed patch object", "failed to convert new object")
"""How the API server begins to say, with code 500, that what is applied makes no sense."""

Json = dict[str, Any]


class ApiError(ClusterRefused):
    """The API server refused a request.

    Attributes:
        code: the HTTP status.
        causes: why, in words of the API; empty if there are none.
    """

    def __init__(self, code: int, message: str, causes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.causes = causes

    @property
    def namespace_ends(self) -> bool:
        """Whether nothing can be made because the namespace is being deleted."""
        return self.code == 403 and "NamespaceTerminating" in self.causes  # noqa: PLR2004

    @property
    def another(self) -> bool:
        """Whether a JSON patch was meant for an object that is another one by now."""
        # what is wrong with the object itself would be listed
        return self.code == 422 and not self.causes  # noqa: PLR2004


class Api:
    """The API server.

    Args:
        client: the official client, configured.

    Attributes:
        requests: how many requests of which verb on which resource ended with which code.
    """

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._slots = asyncio.Semaphore(_AT_A_TIME)
        self.requests: Counter[tuple[str, str, int]] = Counter()

    async def get(self, kind: ApiKind, namespace: str, name: str) -> Json | None:
        """An object, or None if there is none.

        Raises:
            ApiError: the request is refused.
            ClusterUnavailable: there is no answer.
        """
        try:
            return _object(await self._send("get", kind, "GET", kind.path(namespace, name)))
        except ApiError as error:
            if error.code == 404:  # noqa: PLR2004
                return None
            raise

    async def list(self, kind: ApiKind, namespace: str | None, selector: str = "") -> AsyncIterator[Json]:
        """Every object of a kind, page by page, all of the same moment.

        Args:
            kind: which.
            namespace: where; None for everywhere.
            selector: labels that they must have.

        Raises:
            ApiError: the request is refused.
            ClusterUnavailable: there is no answer.
        """
        async for page in self._pages(kind, namespace, selector):
            for item in page["items"]:
                yield {"apiVersion": kind.api_version, "kind": kind.kind, **item}

    async def snapshot(self, kind: ApiKind, namespace: str | None) -> tuple[Sequence[Json], str]:
        """Every object of a kind, and the version of that list, from which `watch` goes on.

        Raises:
            ApiError: the request is refused.
            ClusterUnavailable: there is no answer.
        """
        found: Sequence[Json] = ()
        version = ""
        async for page in self._pages(kind, namespace):
            items = ({"apiVersion": kind.api_version, "kind": kind.kind, **item} for item in page["items"])
            found = (*found, *items)
            version = version or page["metadata"]["resourceVersion"]
        return found, version

    async def watch(
        self, kind: ApiKind, namespace: str | None, version: str
    ) -> AsyncIterator[tuple[str, Json]]:
        """What happens to objects of a kind after a version, until the API server ends the answer.

        Args:
            kind: which.
            namespace: where; None for everywhere.
            version: of a list, or of the latest object that was told of.

        Yields:
            `ADDED`, `MODIFIED` or `DELETED` with the object, or `BOOKMARK` with one that has but a version.

        Raises:
            ApiError: the request is refused.
            ClusterUnavailable: there is no answer, nothing more comes, or the version is too old.
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

    async def create(self, kind: ApiKind, namespace: str | None, body: Json) -> Json:
        """Makes an object.

        Raises:
            ApiError: the request is refused; with code 409 if there is one.
            ClusterUnavailable: there is no answer.
        """
        return _object(await self._send("create", kind, "POST", kind.path(namespace), body, query=_MANAGED))

    async def merge(self, kind: ApiKind, namespace: str, name: str, body: Json, part: str = "") -> Json:
        """Changes fields of an object (https://www.rfc-editor.org/rfc/rfc7396).

        Raises:
            ApiError: the request is refused.
            ClusterUnavailable: there is no answer.
        """
        path = kind.path(namespace, name, part)
        return _object(await self._send("patch", kind, "PATCH", path, body, content=MERGE, query=_MANAGED))

    async def apply(self, kind: ApiKind, body: Json, *, force: bool, manager: str = FIELD_MANAGER) -> Json:
        """Makes an object have these fields, by server-side apply.

        Args:
            kind: which.
            body: the object with all fields that are ours, with its name and namespace.
            force: whether fields that are somebody else's become ours.
            manager: whose fields these are.

        Raises:
            ApiError: the request is refused; with code 409 if a field is somebody else's.
            ClusterUnavailable: there is no answer.
        """
        path = kind.path(body["metadata"]["namespace"], body["metadata"]["name"])
        query = {"fieldManager": manager} | ({"force": "true"} if force else {})
        body = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        return _object(await self._send("apply", kind, "PATCH", path, body, content=APPLY, query=query))

    async def replace_status(self, kind: ApiKind, namespace: str, name: str, uid: str, status: Json) -> None:
        """Gives an object this status, if it is still the one with this uid.

        Only a JSON patch can ask for that (https://www.rfc-editor.org/rfc/rfc6902): in all other changes of a
        status the API server passes over the uid.

        Raises:
            ApiError: the request is refused; `another` if the uid is another one.
            ClusterUnavailable: there is no answer.
        """
        steps: list[Json] = [
            {"op": "test", "path": "/metadata/uid", "value": uid},
            {"op": "add", "path": "/status", "value": status},
        ]
        path = kind.path(namespace, name, "status")
        await self._send("patch", kind, "PATCH", path, steps, content=_STEPS, query=_MANAGED)

    async def delete(self, kind: ApiKind, namespace: str, name: str) -> None:
        """Deletes an object, if there is one, and lets what belongs to it follow.

        Raises:
            ApiError: the request is refused.
            ClusterUnavailable: there is no answer.
        """
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        try:
            await self._send("delete", kind, "DELETE", kind.path(namespace, name), options)
        except ApiError as error:
            if error.code != 404:  # noqa: PLR2004
                raise

    async def _pages(self, kind: ApiKind, namespace: str | None, selector: str = "") -> AsyncIterator[Json]:
        query = {"limit": str(_PAGE)} | ({"labelSelector": selector} if selector else {})
        while True:
            page = _object(await self._send("list", kind, "GET", kind.path(namespace), query=query))
            yield page
            token = page["metadata"].get("continue")
            if not token:
                return
            query = {**query, "continue": token}

    async def _lines(self, kind: ApiKind, path: str, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The lines of an answer that goes on."""
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
                code = response.status
                data: bytes = await response.response.read()
        except (ClientError, TimeoutError, OSError, ssl.SSLError) as error:
            raise _no_answer(error) from error
        finally:
            self.requests[verb, kind.plural, code] += 1
        if code >= 400:  # noqa: PLR2004
            _refuse(code, data)
        return data


def raise_refusal(error: ApiError, what: str) -> None:
    """Raises the refusal of an object, unless it is gone or its namespace is being deleted.

    Raises:
        ClusterRefused: the message says why.
    """
    if not error.namespace_ends and error.code != 404:  # noqa: PLR2004
        raise ClusterRefused(f"the API server refused {what}: {error}") from error


_MANAGED = {"fieldManager": FIELD_MANAGER}


def _no_answer(error: Exception) -> ClusterUnavailable:
    return ClusterUnavailable(f"the API server does not answer: {str(error) or type(error).__name__}")


def _object(data: bytes) -> Json:
    try:
        found: Json = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        said = data.decode(errors="replace")[:_SHOWN]
        raise ClusterUnavailable(f"the API server's answer is not JSON: {said}") from error
    return found


def _refuse(code: int, data: bytes) -> None:
    """Raises what an answer with this code and body means."""
    try:
        status = msgspec.json.decode(data)
        message = str(status["message"])
        causes = tuple(str(c.get("reason", "")) for c in (status.get("details") or {}).get("causes") or ())
    except (msgspec.DecodeError, KeyError, AttributeError, TypeError):
        message, causes = data.decode(errors="replace")[:_SHOWN], ()
    if code in _RETRIED and not message.startswith(_UNREADABLE):
        raise ClusterUnavailable(f"the API server answered {code}: {message}")
    raise ApiError(code, message, causes)
