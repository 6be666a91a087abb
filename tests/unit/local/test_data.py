"""The data directory, agents' bindings with their keys, and ending what was left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from agentstream.identity.settings import Binding, Settings
from agentstream.protocol.signatures import SigningEntry, SigningKey, decode_signing, encode_signing
from agentstream_operator.cluster.port import Credentials, SigningKeys
from agentstream_operator.local.bindings import BindingFiles, SigningFiles, write_private
from agentstream_operator.local.processes import reaper
from agentstream_operator.local.screen.output import LocalError, cannot
from agentstream_operator.local.server.datadir import DataDirectory
from agentstream_operator.resources.meta import ResourceKey


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_data_directory_is_private(tmp_path: Path) -> None:
    with DataDirectory(tmp_path / "a" / "data") as data:
        data.password()
        assert mode(data.path) == 0o700
        assert {mode(p) for p in data.path.iterdir() if p.is_file()} == {0o600}
        assert (data.path / ".gitignore").read_text() == "*\n"


def test_a_gitignore_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("mine\n")
    with DataDirectory(tmp_path):
        assert (tmp_path / ".gitignore").read_text() == "mine\n"


def test_a_password_is_made_once(tmp_path: Path) -> None:
    with DataDirectory(tmp_path) as data:
        first = data.password()
    with DataDirectory(tmp_path) as data:
        assert data.password() == first
    assert len(first) > 40


def test_a_password_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "operator").mkdir()
    with (
        DataDirectory(tmp_path) as data,
        pytest.raises(LocalError, match=r"^cannot write to .*: Is a directory$"),
    ):
        data.password()


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    with (
        DataDirectory(tmp_path),
        pytest.raises(LocalError, match=rf"is in use by another `agentstream dev` \(process {os.getpid()}\)"),
        DataDirectory(tmp_path),
    ):
        raise AssertionError


@pytest.mark.parametrize("holder", ["999999999", ""])
def test_what_a_killed_one_left_is_waited_for(tmp_path: Path, holder: str) -> None:
    (tmp_path / "lock").write_text(holder)
    held = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    release = threading.Timer(0.1, os.close, (held,))
    release.start()
    with DataDirectory(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    release.join()


def test_a_file_in_place_of_the_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with (
        pytest.raises(LocalError, match=r"^cannot use .*/f as data directory: File exists$"),
        DataDirectory(tmp_path / "f"),
    ):
        raise AssertionError


def test_a_directory_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with (
        pytest.raises(LocalError, match=r"^cannot use .* as data directory: File exists$"),
        DataDirectory(tmp_path / "f" / "data"),
    ):
        raise AssertionError


def test_a_process_of_somebody_else_runs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    with DataDirectory(tmp_path), pytest.raises(LocalError, match="is in use"), DataDirectory(tmp_path):
        raise AssertionError


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(IsADirectoryError):
        write_private(tmp_path / "x", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_error_without_words_is_shown_by_itself() -> None:
    assert str(cannot("do it", OSError("odd"))) == "cannot do it: odd"
    assert str(cannot("do it", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))).endswith(
        "No space left on device"
    )


CREDENTIALS = Credentials("team-a", "coder", "agentstream.team-a.coder", "pass")


def test_a_binding_says_everything_and_has_no_password_in_its_address(tmp_path: Path) -> None:
    bindings = BindingFiles(tmp_path, port=7, installation="agentstream")
    bindings.write(CREDENTIALS)
    directory = tmp_path / "team-a.coder"
    assert {p.name: p.read_text() for p in directory.iterdir()} == {
        "type": "redis",
        "provider": "agentstream",
        "uri": "redis://127.0.0.1:7",
        "host": "127.0.0.1",
        "port": "7",
        "username": "agentstream.team-a.coder",
        "password": "pass",
        "namespace": "team-a",
        "agent": "coder",
        "installation": "agentstream",
    }
    assert mode(directory) == 0o700
    assert {mode(p) for p in directory.iterdir()} == {0o600}


def test_a_binding_is_read_back(tmp_path: Path) -> None:
    bindings = BindingFiles(tmp_path, port=7, installation="agentstream")
    assert bindings.read("team-a", "coder") is None
    bindings.write(CREDENTIALS)
    assert bindings.read("team-a", "coder") == CREDENTIALS
    assert bindings.users() == {CREDENTIALS.username}


def test_a_binding_is_removed(tmp_path: Path) -> None:
    bindings = BindingFiles(tmp_path, port=7, installation="agentstream")
    bindings.write(CREDENTIALS)
    bindings.delete("team-a", "coder")
    bindings.delete("team-a", "coder")
    assert not list(tmp_path.iterdir())


def test_bindings_follow_the_server_to_another_port(tmp_path: Path) -> None:
    BindingFiles(tmp_path, port=7, installation="agentstream").write(CREDENTIALS)
    later = BindingFiles(tmp_path, port=8, installation="agentstream")
    later.relocate()
    assert (tmp_path / "team-a.coder" / "uri").read_text() == "redis://127.0.0.1:8"
    assert later.read("team-a", "coder") == CREDENTIALS


def test_groups_that_ended_are_not_remembered() -> None:
    assert reaper.remaining(["+1\n", "+2\n", "-1\n", "-9\n"]) == {2}


def test_groups_are_asked_to_end() -> None:
    process = subprocess.Popen(["sleep", "60"], process_group=0)
    waiting = threading.Thread(target=process.wait)
    waiting.start()
    reaper.end({process.pid, 999_999_999}, 5.0)
    waiting.join()
    assert process.returncode == -signal.SIGTERM


def test_groups_that_do_not_end_are_killed(tmp_path: Path) -> None:
    script = f"trap '' TERM; touch {tmp_path}/up; while :; do sleep 1; done"
    process = subprocess.Popen(["sh", "-c", script], process_group=0)
    while not (tmp_path / "up").exists():
        pass
    reaper.end({process.pid}, 0.1)
    assert process.wait() == -signal.SIGKILL


def test_a_group_of_somebody_else_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(group: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "killpg", refuse)
    assert not reaper.signal_group(1, 0)


def test_without_its_reaper_everything_goes_on() -> None:
    ours = reaper.Reaper()
    os.kill(ours.pid, signal.SIGKILL)
    ours.close()
    ours.watch(1)
    ours.close()


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


def encoded(*keys: SigningKey) -> str:
    return encode_signing(SigningEntry("Require", keys))


def test_a_binding_has_the_keys_that_its_agent_is_given(tmp_path: Path) -> None:
    bindings = BindingFiles(tmp_path, port=7, installation="agentstream")
    settings = Settings(namespace="t", agent="a", source=Binding(tmp_path / "team-a.coder"), pod="p")
    for signing in (
        {"tasks": encoded(OLD)},
        {"tasks": encoded(NEW, OLD), "orders": encoded(OLD)},
        {"orders": encoded(OLD)},
        {},
    ):
        credentials = Credentials("team-a", "coder", "agentstream.team-a.coder", "pass", signing=signing)
        bindings.write(credentials)
        assert bindings.read("team-a", "coder") == credentials
        for stream in ("tasks", "orders"):
            text = signing.get(stream)
            unnamed = None if signing else SigningEntry()
            assert settings.signing_of(stream) == (decode_signing(text) if text else unnamed)
    assert not list((tmp_path / "team-a.coder").glob("signing-*"))
