"""A namespace of a test, as its administrator sees and changes it."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp

from support.apiserver import ApiServer
from support.kubectl import Kubectl
from support.waiting import until

Json = dict[str, Any]
_GROUPS = {
    "AgentStream": "apis/agentstream.dev/v1alpha1",
    "ConsumerGroup": "apis/agentstream.dev/v1alpha1",
    "Deployment": "apis/apps/v1",
    "Event": "api/v1",
    "HorizontalPodAutoscaler": "apis/autoscaling/v2",
    "Lease": "apis/coordination.k8s.io/v1",
    "Pod": "api/v1",
    "Secret": "api/v1",
    "StreamReplay": "apis/agentstream.dev/v1alpha1",
}
_ALL_TOLD = "k8s.io/initial-events-end"


@dataclass(frozen=True)
class Team:
    """A namespace.

    Attributes:
        server: the API server.
        namespace: its name.
    """

    server: ApiServer
    namespace: str

    @property
    def kubectl(self) -> Kubectl:
        """kubectl in this namespace."""
        return self.server.kubectl(self.namespace)

    def create(self, *manifests: Json) -> list[Json]:
        """Makes objects."""
        return [self.server.expect("POST", self._path(m["kind"]), m) for m in manifests]

    def get(self, kind: str, name: str) -> Json | None:
        """An object, or None if there is none."""
        status, found = self.server.call("GET", self._path(kind, name))
        return found if status == 200 else None

    def list(self, kind: str) -> list[Json]:
        """All objects of a kind."""
        items: list[Json] = self.server.expect("GET", self._path(kind))["items"]
        return items

    def change(self, kind: str, name: str, patch: Json, subresource: str = "") -> Json:
        """Changes fields of an object; None removes one."""
        return self.server.expect(
            "PATCH", self._path(kind, name) + subresource, patch, content_type="application/merge-patch+json"
        )

    def annotate(self, kind: str, name: str, **annotations: str) -> None:
        """Adds annotations of this project to an object."""
        named = {f"agentstream.dev/{key.replace('_', '-')}": value for key, value in annotations.items()}
        self.change(kind, name, {"metadata": {"annotations": named}})

    def delete(self, kind: str, name: str) -> None:
        """Deletes an object; that it is gone is another matter."""
        self.server.expect("DELETE", self._path(kind, name))

    async def until(
        self, kind: str, name: str, condition: Callable[[Json | None], Any], timeout: float = 20.0
    ) -> Json | None:
        """Waits until an object is as it should be. Returns it; None is one that is not there."""
        last: Json | None = None
        try:
            async with asyncio.timeout(timeout), aclosing(self._states(kind, name)) as states:
                async for last in states:
                    if condition(last):
                        return last
        except TimeoutError:
            raise AssertionError(f"{kind} {name} is still {json.dumps(last, indent=1)}") from None
        raise AssertionError(f"the watch of {kind} {name} has ended")

    async def gone(self, kind: str, name: str, timeout: float = 20.0) -> None:
        """Waits until there is no such object."""
        await self.until(kind, name, lambda found: found is None, timeout)

    async def there(self, kind: str, name: str) -> Json:
        """Waits for an object."""
        found = await self.until(kind, name, lambda found: found is not None)
        assert found is not None
        return found

    async def says(  # noqa: PLR0917 - what a condition says, in its order
        self, kind: str, name: str, status: str, reason: str, about: str = "Ready", timeout: float = 20.0
    ) -> str:
        """Waits for a condition of the latest generation. Returns its message."""

        def does(found: Json | None) -> bool:
            return said(found, about)[:2] == (status, reason)

        return said(await self.until(kind, name, does, timeout), about)[2]

    async def ready(self, *resources: Json, timeout: float = 20.0) -> None:
        """Waits until resources are in effect."""
        for found in resources:
            await self.says(found["kind"], found["metadata"]["name"], "True", "Ready", timeout=timeout)

    def _path(self, kind: str, name: str = "") -> str:
        path = f"/{_GROUPS[kind]}/namespaces/{self.namespace}/{kind.lower()}s"
        return f"{path}/{name}" if name else path

    async def _states(self, kind: str, name: str) -> AsyncGenerator[Json | None, None]:
        """The object as it is now, and after every change; None while it is not there."""
        query = {
            "watch": "1",
            "fieldSelector": f"metadata.name={name}",
            "allowWatchBookmarks": "true",
            "sendInitialEvents": "true",
            "resourceVersionMatch": "NotOlderThan",
        }
        tls = ssl.create_default_context(cafile=self.server.ca_file)
        headers = {"Authorization": f"Bearer {self.server.token}"}
        present: Json | None = None
        all_told = told = False
        # a server that has just started tells clients to come again
        await until(lambda: self.server.call("GET", self._path(kind))[0] != HTTPStatus.TOO_MANY_REQUESTS)
        async with (
            aiohttp.ClientSession(headers=headers, read_bufsize=2**20) as session,
            session.get(self.server.url + self._path(kind), params=query, ssl=tls) as answer,
        ):
            assert answer.status == 200, await answer.text()
            assert answer.connection is not None
            assert answer.connection.transport is not None
            transport = answer.connection.transport
            try:
                async for line in answer.content:
                    event = json.loads(line)
                    found = event["object"]
                    if event["type"] == "BOOKMARK":
                        all_told = all_told or _ALL_TOLD in found["metadata"].get("annotations", {})
                        if not all_told or told:
                            continue
                    else:
                        present = None if event["type"] == "DELETED" else found
                    if all_told:
                        told = True
                        yield present
            finally:
                # a polite end would outlive the test
                transport.abort()


def said(found: Json | None, about: str = "Ready") -> tuple[str, str, str]:
    """Status, reason and message of a condition; empty if it is not there or of an older generation."""
    if found is None:
        return "", "", ""
    for condition in found.get("status", {}).get("conditions", ()):
        if condition["type"] == about and condition["observedGeneration"] == found["metadata"]["generation"]:
            return condition["status"], condition["reason"], condition["message"]
    return "", "", ""
