"""Where the API server has the objects of a kind."""

from __future__ import annotations

import pytest

from agentstream_operator.cluster.kinds import (
    AGENTSTREAMS,
    CONSUMERGROUPS,
    DEPLOYMENTS,
    LEASES,
    PODS,
    SECRETS,
)


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
