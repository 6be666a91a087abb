"""What may be wrong with the options of the operator and of the metrics server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentstream.transport.endpoint import Endpoint
from agentstream_operator.service import server_of
from agentstream_operator.settings import MetricsOptions, OperatorOptions, mistakes

GOOD = OperatorOptions(
    Endpoint("redis://operator:s3cret@redis.example:6379"), None, "agentstream", (), 8080, 8081
)


def test_nothing_is_wrong_with_an_address_and_defaults() -> None:
    assert list(mistakes(GOOD)) == []


def test_any_free_port_may_be_asked_for_twice() -> None:
    assert list(mistakes(replace(GOOD, metrics_port=0, health_port=0))) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"redis": Endpoint("redis.example:6379")},
            "--redis-url-file: not a redis:// or rediss:// URL with a host",
        ),
        ({"redis": Endpoint("redis://")}, "--redis-url-file: not a redis:// or rediss:// URL with a host"),
        (
            {"redis": Endpoint("http://redis.example")},
            "--redis-url-file: not a redis:// or rediss:// URL with a host",
        ),
        ({"redis": Endpoint("redis://redis.example:0")}, "--redis-url-file: port 0 is not valid"),
        ({"redis": Endpoint("redis://o:s3cret#1@redis:6379")}, "--redis-url-file: cannot parse the URL"),
        ({"installation": "a.b"}, "--installation: 'a.b' is not a DNS label"),
        ({"namespaces": ["team-a", "Team"]}, "--namespace: 'Team' is not the name of a namespace"),
        ({"metrics_port": 8081}, "--metrics-port and --health-port: both are 8081"),
    ],
)
def test_a_mistake_is_told_in_a_line_without_the_password(change: dict[str, Any], expected: str) -> None:
    (line,) = mistakes(replace(GOOD, **change))
    assert line.startswith(expected)
    assert "s3cret" not in line


def test_the_metrics_server_has_the_same_options_and_ports_of_its_own() -> None:
    files = (Path("tls.crt"), Path("tls.key"))
    good = MetricsOptions(GOOD.redis, None, "agentstream", (), *files, 6443, 8081)
    assert list(mistakes(good)) == []
    assert list(mistakes(replace(good, port=8081))) == [
        "--port and --health-port: both are 8081; choose two ports"
    ]
    (line,) = mistakes(replace(good, installation="a.b"))
    assert line.startswith("--installation: 'a.b' is not a DNS label")


def test_a_ca_file_may_have_comments_in_any_encoding(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes("# Zürich\n".encode("latin-1"))
    server = server_of(Endpoint("rediss://o:s3cret@redis.example", ca_file=str(tmp_path / "ca.crt")))
    assert (server.uri, server.authority) == ("rediss://redis.example:6379", "# Z\ufffdrich\n")
