"""Settings come from the environment or the mounted Secret, and what is missing is named."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from agentstream.errors import SettingsError
from agentstream.identity.settings import Settings
from agentstream.transport.endpoint import Endpoint

PLAIN = {
    "AGENTSTREAM_URL": "redis://host:1",
    "AGENTSTREAM_NAMESPACE": "team-a",
    "AGENTSTREAM_AGENT": "coder",
    "AGENTSTREAM_POD": "coder-7",
}


def binding(directory: Path, **entries: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    known = {
        "uri": "redis://host:1",
        "namespace": "team-a",
        "agent": "coder",
        "username": "u",
        "password": "p",
    }
    for name, value in {**known, **entries}.items():
        (directory / name).write_text(value + "\n")
    return directory


def test_the_environment_alone_is_enough() -> None:
    settings = Settings.from_env({**PLAIN, "AGENTSTREAM_USERNAME": "u", "AGENTSTREAM_PASSWORD": "p"})
    assert (settings.namespace, settings.agent, settings.pod) == ("team-a", "coder", "coder-7")
    assert settings.installation == "agentstream"
    assert settings.endpoint() == Endpoint("redis://host:1", "u", "p")


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLAIN.items():
        monkeypatch.setenv(name, value)
    assert Settings.from_env().agent == "coder"


def test_the_host_names_the_pod_where_nothing_else_does() -> None:
    settings = Settings.from_env({**PLAIN, "AGENTSTREAM_POD": ""})
    assert settings.pod == socket.gethostname()


def test_a_mounted_secret_is_enough(tmp_path: Path) -> None:
    directory = binding(tmp_path, installation="other")
    settings = Settings.from_env({"AGENTSTREAM_BINDING": str(directory)})
    assert (settings.namespace, settings.agent, settings.installation) == ("team-a", "coder", "other")
    assert settings.endpoint() == Endpoint("redis://host:1", "u", "p")


def test_the_secret_is_found_where_bindings_are_mounted(tmp_path: Path) -> None:
    binding(tmp_path / "agentstream")
    assert Settings.from_env({"SERVICE_BINDING_ROOT": str(tmp_path)}).agent == "coder"


def test_variables_come_before_entries_of_the_secret(tmp_path: Path) -> None:
    directory = binding(tmp_path)
    assert (
        Settings.from_env({"AGENTSTREAM_BINDING": str(directory), "AGENTSTREAM_AGENT": "tester"}).agent
        == "tester"
    )


def test_new_credentials_are_read_without_a_restart(tmp_path: Path) -> None:
    settings = Settings.from_env({"AGENTSTREAM_BINDING": str(binding(tmp_path))})
    binding(tmp_path, password="changed")
    assert settings.endpoint().password == "changed"


@pytest.mark.parametrize(("authority", "scheme"), [(False, "redis"), (True, "rediss")])
def test_host_and_port_stand_in_for_the_uri(tmp_path: Path, scheme: str, *, authority: bool) -> None:
    directory = binding(tmp_path, uri="", host="valkey", port="7000")
    if authority:
        (directory / "ca.crt").write_text("")
    endpoint = Settings.from_env({"AGENTSTREAM_BINDING": str(directory)}).endpoint()
    assert endpoint.url == f"{scheme}://valkey:7000"
    assert endpoint.ca_file == (str(directory / "ca.crt") if authority else None)


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({}, "AGENTSTREAM_BINDING"),
        ({"SERVICE_BINDING_ROOT": "/nowhere"}, "/nowhere has no directory `agentstream`"),
        ({"AGENTSTREAM_BINDING": "/nowhere"}, "/nowhere, which is no directory"),
        ({**PLAIN, "AGENTSTREAM_AGENT": ""}, "AGENTSTREAM_AGENT is not set"),
        ({**PLAIN, "AGENTSTREAM_NAMESPACE": "Team A"}, "AGENTSTREAM_NAMESPACE must be a DNS label"),
    ],
)
def test_what_is_missing_or_wrong_is_named(environ: dict[str, str], names: str) -> None:
    with pytest.raises(SettingsError, match=names):
        Settings.from_env(environ)


@pytest.mark.parametrize(
    ("entries", "names"),
    [({"uri": ""}, "neither an entry `uri` nor `host`"), ({"agent": ""}, "has no entry `agent`")],
)
def test_what_the_secret_lacks_is_named(tmp_path: Path, entries: dict[str, str], names: str) -> None:
    with pytest.raises(SettingsError, match=names):
        Settings.from_env({"AGENTSTREAM_BINDING": str(binding(tmp_path, **entries))})


def test_an_entry_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    directory = binding(tmp_path)
    (directory / "password").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match=r"cannot read .*password"):
        Settings.from_env({"AGENTSTREAM_BINDING": str(directory)})


def test_no_secret_shows() -> None:
    settings = Settings.from_env(
        {**PLAIN, "AGENTSTREAM_URL": "redis://u:hidden@host:1", "AGENTSTREAM_PASSWORD": "hidden"}
    )
    assert "hidden" not in repr(settings)


@pytest.mark.parametrize("url", ["localhost:6379", "127.0.0.1:6379", "host", "http://host"])
def test_an_address_without_scheme_is_an_error_at_once(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="write redis://host:port"):
        Settings.from_env({**PLAIN, "AGENTSTREAM_URL": url})
    with pytest.raises(SettingsError, match="write redis://host:port"):
        Settings.from_env({"AGENTSTREAM_BINDING": str(binding(tmp_path / "bound", uri=url))})
