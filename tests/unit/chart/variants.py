"""Values of the chart that together touch every line of its templates."""

from __future__ import annotations

from typing import Any

from support.helm import EMBEDDED, EXTERNAL

_PEER = {"namespaceSelector": {"matchLabels": {"team": "data"}}}

EVERYTHING: dict[str, Any] = {
    "redis": {"existingSecret": "my-redis", "caKey": "ca.crt"},
    "watchNamespaces": ["team-a", "team-b"],
    "installation": "blue",
    "allowKeys": ["legacy:*", "{old}.tasks"],
    "log": {"format": "json"},
    "image": {
        "repository": "registry.example:5000/tools/agentstream",
        "digest": f"sha256:{'0' * 64}",
        "pullPolicy": "Always",
    },
    "imagePullSecrets": [{"name": "pull"}],
    "replicas": 3,
    "resources": {"limits": {"memory": "1Gi"}},
    "podAnnotations": {"example.com/note": "yes"},
    "podLabels": {"team": "platform"},
    "deploymentAnnotations": {"example.com/owner": "platform"},
    "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}]
            }
        }
    },
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
    ],
    "priorityClassName": "system-cluster-critical",
    "extraArgs": ["--log-format", "json"],
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "serviceAccount": {"name": "streams", "annotations": {"example.com/role": "reader"}},
    "networkPolicy": {
        "metricsFrom": [_PEER],
        "redisTo": [{"ipBlock": {"cidr": "10.1.2.0/24"}}],
        "redisPorts": [6380],
        "extraEgress": [{"to": [_PEER]}],
    },
    "metrics": {
        "service": {"annotations": {"example.com/scrape": "yes"}, "labels": {"scrape": "yes"}},
        "serviceMonitor": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "annotations": {"example.com/note": "yes"},
            "relabelings": [{"action": "labeldrop", "regex": "pod_ip"}],
            "metricRelabelings": [{"action": "drop", "sourceLabels": ["x"], "regex": "y"}],
        },
        "podMonitor": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "annotations": {"example.com/note": "yes"},
            "relabelings": [{"action": "labeldrop", "regex": "pod_ip"}],
            "metricRelabelings": [{"action": "drop", "sourceLabels": ["x"], "regex": "y"}],
        },
        "prometheusRule": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "annotations": {"example.com/note": "yes"},
            "alertLabels": {"team": "platform"},
        },
    },
    "commonLabels": {"cost-centre": "7"},
    "extraObjects": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "as-object"}},
        'apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ include "agentstream.fullname" . }}-as-text',
    ],
}

EMBEDDED_EVERYTHING: dict[str, Any] = {
    "redis": {
        "embedded": True,
        "image": {"repository": "valkey/valkey", "tag": "8.1"},
        "maxMemory": "2gb",
        "persistence": {"size": "10Gi", "storageClass": "fast"},
        "resources": {"limits": {"memory": "4Gi"}},
        "podAnnotations": {"example.com/note": "yes"},
        "podLabels": {"team": "platform"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "priorityClassName": "high",
    },
    "watchNamespaces": ["team-a"],
    "imagePullSecrets": [{"name": "pull"}],
    "commonLabels": {"cost-centre": "7"},
}

BARE: dict[str, Any] = {
    **EXTERNAL,
    "crds": {"enabled": False},
    "rbac": {"create": False, "aggregate": False},
    "admissionPolicy": {"enabled": False},
    "serviceAccount": {"create": False},
    "removeFinalizers": {"enabled": False},
    "networkPolicy": {"enabled": False},
    "nodeSelector": {"kubernetes.io/os": None},
    "resources": {"requests": None, "limits": None},
}

VARIANTS: dict[str, dict[str, Any]] = {
    "embedded": dict(EMBEDDED),
    "external": dict(EXTERNAL),
    "everything": EVERYTHING,
    "embedded-everything": EMBEDDED_EVERYTHING,
    "emptydir": {"redis": {"embedded": True, "persistence": {"enabled": False}}},
    "bare": BARE,
    "two": {**EMBEDDED, "replicas": 2},
    "external-metrics": {**EMBEDDED, "metricsServer": {"enabled": True}},
    "queue": {**EMBEDDED, "queueServer": {"enabled": True}},
    "queue-everything": {
        **EVERYTHING,
        "queueServer": {
            "console": {"enabled": False},
            "enabled": True,
            "replicas": 2,
            "hosts": ["queue.example.com"],
            "redis": {"existingSecret": "read-only"},
            "tls": {"existingSecret": "queue-certificate"},
            "proxy": {"caSecret": "proxy-ca", "names": ["gateway"]},
            "cliMay": "everything",
            "from": [{"namespaceSelector": {}}],
        },
        "extraObjects": [],
    },
    "cert-manager": {
        **EVERYTHING,
        "metricsServer": {"enabled": True, "replicas": 2, "certManager": {"enabled": True}},
        "extraObjects": [],
    },
    "crds-go": {**EXTERNAL, "crds": {"keep": False}},
}
