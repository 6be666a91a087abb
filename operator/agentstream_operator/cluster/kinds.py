"""The kinds of objects that the operator reads and writes, and their paths."""

from __future__ import annotations

from dataclasses import dataclass

from agentstream_operator.resources.crd import KINDS
from agentstream_operator.resources.meta import API_VERSION


@dataclass(frozen=True, slots=True)
class ApiKind:
    """A kind of the API: its group and version, its name in manifests, and its plural in paths."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str | None, name: str = "", part: str = "") -> str:
        """Returns the path of an object, a subresource, all objects of a namespace, or all (None)."""
        root = "/api/" if "/" not in self.api_version else "/apis/"
        where = f"/namespaces/{namespace}" if namespace is not None else ""
        tail = "".join(f"/{step}" for step in (name, part) if step)
        return f"{root}{self.api_version}{where}/{self.plural}{tail}"


SECRETS = ApiKind("v1", "Secret", "secrets")
SERVICES = ApiKind("v1", "Service", "services")
ACCOUNTS = ApiKind("v1", "ServiceAccount", "serviceaccounts")
PODS = ApiKind("v1", "Pod", "pods")
NAMESPACES = ApiKind("v1", "Namespace", "namespaces")
EVENTS = ApiKind("v1", "Event", "events")
DEPLOYMENTS = ApiKind("apps/v1", "Deployment", "deployments")
AUTOSCALERS = ApiKind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
CONFIGMAPS = ApiKind("v1", "ConfigMap", "configmaps")
ACCESS_REVIEWS = ApiKind("authorization.k8s.io/v1", "SubjectAccessReview", "subjectaccessreviews")
TOKEN_REVIEWS = ApiKind("authentication.k8s.io/v1", "TokenReview", "tokenreviews")
SELF_REVIEWS = ApiKind("authorization.k8s.io/v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews")
DEFINITIONS = ApiKind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions")
LEASES = ApiKind("coordination.k8s.io/v1", "Lease", "leases")
RESOURCES = {kind.model.__name__: ApiKind(API_VERSION, kind.model.__name__, kind.plural) for kind in KINDS}
"""The custom resources, by kind."""

AGENTSTREAMS, CONSUMERGROUPS = RESOURCES["AgentStream"], RESOURCES["ConsumerGroup"]
STREAMREPLAYS = RESOURCES["StreamReplay"]

OWNED_KINDS = (SECRETS, DEPLOYMENTS, PODS, AUTOSCALERS)
"""The kinds of the objects that the operator creates, and of their pods."""
