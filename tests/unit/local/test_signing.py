"""Signing keys in files: a stream's own, and what its agents' bindings have of them."""

from __future__ import annotations

import stat
from pathlib import Path

from agentstream.identity.settings import Binding, Settings
from agentstream.protocol.signatures import SigningKey, encode_keys
from agentstream_operator.cluster.port import Credentials, SigningKeys
from agentstream_operator.local.bindings import BindingFiles, SigningFiles
from agentstream_operator.resources.meta import ResourceKey

STREAM = ResourceKey("AgentStream", "team-a", "tasks")
OLD, NEW = SigningKey("old", "o" * 43, 1, 0), SigningKey("new", "n" * 43, 121, 1)
KEYS = SigningKeys(STREAM, (NEW, OLD), "uid")


def test_keys_are_read_back_and_are_their_owners_alone(tmp_path: Path) -> None:
    files = SigningFiles(tmp_path)
    assert files.read(STREAM) is None
    files.write(KEYS)
    assert files.read(STREAM) == KEYS
    (path,) = tmp_path.iterdir()
    assert path.name == "team-a.tasks"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_is_something_else_has_no_keys(tmp_path: Path) -> None:
    (tmp_path / "team-a.tasks").write_text("[]")
    assert SigningFiles(tmp_path).read(STREAM) is None


def test_a_binding_has_the_keys_that_its_agent_is_given(tmp_path: Path) -> None:
    bindings = BindingFiles(tmp_path, port=7, installation="agentstream")
    settings = Settings(namespace="t", agent="a", source=Binding(tmp_path / "team-a.coder"), pod="p")
    for signing in (
        {"tasks": encode_keys((OLD,))},
        {"tasks": encode_keys((NEW, OLD)), "orders": encode_keys((OLD,))},
        {"orders": encode_keys((OLD,))},
        {},
    ):
        credentials = Credentials("team-a", "coder", "agentstream.team-a.coder", "pass", signing=signing)
        bindings.write(credentials)
        assert bindings.read("team-a", "coder") == credentials
        for stream in ("tasks", "orders"):
            assert encode_keys(settings.keys_of(stream)) == signing.get(stream, "[]")
    assert not list((tmp_path / "team-a.coder").glob("signing-*"))
