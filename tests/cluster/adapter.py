"""The adapter to Kubernetes against the API server of the tests, with the test in place of the watches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from agentstream_operator.cluster.api import Api
from agentstream_operator.cluster.kinds import OWNED_KINDS, RESOURCES
from agentstream_operator.cluster.kubernetes import KubernetesCluster
from agentstream_operator.cluster.labels import OURS
from agentstream_operator.cluster.owned_objects import OwnedObjects
from agentstream_operator.cluster.port import Owner
from agentstream_operator.cluster.secret_contents import ServerAddress
from agentstream_operator.cluster.workloads import DeploymentRefs
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.parse import parse_resource
from cluster.team import Team
from support.apiserver import ApiServer
from unit.resources.manifests import a_group, a_stream

Json = dict[str, Any]
REDIS = ServerAddress("redis://redis.example:6379", "redis.example", 6379)
_WRITES = {"create", "patch", "apply", "delete"}


@asynccontextmanager
async def api_of(server: ApiServer) -> AsyncIterator[Api]:
    """A connection to the API server as its administrator."""
    configuration = Configuration(host=server.url)
    configuration.ssl_ca_cert = str(server.ca_file)
    configuration.api_key["BearerToken"] = f"Bearer {server.token}"
    client = ApiClient(configuration)
    try:
        yield Api(client)
    finally:
        await client.close()


class Adapter:
    """The adapter of one operator for one namespace.

    Args:
        api: the API server.
        team: the namespace.
        redis: where agents find the server.

    Attributes:
        api: as above.
        team: as above.
        owned: what it knows of Secrets, Deployments and pods.
        deployment_refs: as the operator has them.
        cluster: the adapter.
    """

    def __init__(self, api: Api, team: Team, redis: ServerAddress = REDIS) -> None:
        self.api = api
        self.team = team
        self.owned = OwnedObjects()
        self.deployment_refs = DeploymentRefs(api)
        self.cluster = KubernetesCluster(
            api,
            self.owned,
            self.deployment_refs,
            server=redis,
            installation="agentstream",
            identity="agentstream-0",
        )

    async def listed(self) -> Adapter:
        """Knows what there is, as an operator that has just started."""
        for kind in OWNED_KINDS:
            async for found in self.api.list(kind, self.team.namespace, OURS):
                self.owned.put(found)
        return self

    def tell(self, kind: str, name: str) -> None:
        """Tells of an object as it is now, as a watch does."""
        found = self.team.get(kind, name)
        assert found is not None
        self.owned.put({**found, "kind": kind})

    def remove(self, kind: str, name: str) -> None:
        """Deletes an object, and tells of it."""
        found = self.team.get(kind, name)
        assert found is not None
        self.team.delete(kind, name)
        version = int(found["metadata"]["resourceVersion"]) + 1
        gone = {**found["metadata"], "resourceVersion": str(version)}
        self.owned.remove({**found, "kind": kind, "metadata": gone})

    @property
    def writes(self) -> int:
        """How many requests were to change something."""
        return sum(count for (verb, _, _), count in self.api.requests.items() if verb in _WRITES)

    def group(self, name: str = "coder", **spec: Any) -> ConsumerGroup:
        """A ConsumerGroup that the API server has, as it has it; it is changed if it is there."""
        if self.team.get("ConsumerGroup", name) is None:
            self.team.create(a_group(name, **spec))
        else:
            self.team.change("ConsumerGroup", name, {"spec": spec})
        found = parse_resource(self.team.get("ConsumerGroup", name) or {})
        assert isinstance(found, ConsumerGroup)
        return found

    def owner(self, kind: str = "AgentStream", name: str = "tasks") -> Owner:
        """A resource that the API server has, as an owner."""
        assert kind in RESOURCES
        if self.team.get(kind, name) is None:
            self.team.create(a_stream(name) if kind == "AgentStream" else a_group(name))
        found = parse_resource(self.team.get(kind, name) or {})
        return Owner(found.key, found.metadata.uid)


@asynccontextmanager
async def adapter_of(team: Team, redis: ServerAddress = REDIS) -> AsyncIterator[Adapter]:
    """An adapter that knows nothing yet."""
    async with api_of(team.server) as api:
        yield Adapter(api, team, redis)
