"""The embedded server as it runs: the chart's own configuration and scripts, with a real server."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from support.helm import EMBEDDED, HELMS
from support.servers import Build, builds, free_port
from support.waiting import until


def cli() -> str | None:
    """A command-line client, as the images have it."""
    if found := shutil.which("redis-cli"):
        return found
    beside = [Path(build.binary).with_name("valkey-cli") for build in builds()]
    return next((str(path) for path in beside if path.exists()), None)


@dataclass
class Pod:
    """The directory of a pod: what is mounted in it, and the programs of an image in `bin`."""

    root: Path
    port: int

    @property
    def users(self) -> Path:
        return self.root / "data" / "users.acl"

    def password(self, password: str) -> None:
        """Writes the mounted Secret."""
        credentials = self.root / "etc" / "agentstream" / "credentials"
        credentials.mkdir(parents=True, exist_ok=True)
        (credentials / "password").write_text(password)

    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self.root / 'bin'}:/usr/bin:/bin"}

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Starts the server as its container does, and ends it as the kubelet does."""
        with (self.root / "log").open("ab") as log:
            process = subprocess.Popen(
                ["/bin/sh", str(self.root / "etc/agentstream/redis/start.sh")],
                env=self.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)

    def ping(self, question: str) -> subprocess.CompletedProcess[str]:
        """Asks as a probe does."""
        return subprocess.run(
            ["/bin/sh", str(self.root / "etc/agentstream/redis/ping.sh"), question],
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    async def ready(self) -> None:
        await until(lambda: self.ping("ready").returncode == 0)

    def client(self, username: str | None = None, password: str | None = None) -> redis.Redis:
        """A client of its own, which tries once; the caller closes it."""
        return redis.Redis(
            port=self.port,
            username=username,
            password=password,
            decode_responses=True,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
        )


@pytest.fixture(params=builds(), ids=lambda build: build.name)
def pod(request: pytest.FixtureRequest, tmp_path: Path) -> Pod:
    """What the chart mounts, with paths and port of its own."""
    build: Build = request.param
    if (client := cli()) is None:
        pytest.skip("no redis-cli or valkey-cli on this machine")
    made = Pod(tmp_path, free_port())
    (tmp_path / "bin").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "bin" / "redis-server").symlink_to(build.binary)
    # the port is the only argument that the scripts do not give
    wrapper = tmp_path / "bin" / "redis-cli"
    wrapper.write_text(f'#!/bin/sh\nexec "{client}" -p {made.port} "$@"\n')
    wrapper.chmod(0o755)
    mounted = tmp_path / "etc" / "agentstream" / "redis"
    mounted.mkdir(parents=True)
    for name, text in HELMS[0].render(EMBEDDED).one("ConfigMap", "agentstream-redis")["data"].items():
        here = text.replace("/etc/agentstream", f"{tmp_path}/etc/agentstream").replace(
            "/data", f"{tmp_path}/data"
        )
        (mounted / name).write_text(
            here.replace("port 6379", f"port {made.port}").replace("bind * -::*", "bind 127.0.0.1")
        )
    made.password("first-password")
    return made


async def test_the_operator_gets_in_and_nobody_else(pod):
    with pod.running():
        await pod.ready()
        with pod.client("operator", "first-password") as operator:
            assert operator.acl_whoami() == "operator"
            assert operator.execute_command("ACL", "DRYRUN", "operator", "FLUSHALL") == "OK"
            assert operator.config_get("maxmemory-policy", "appendonly") == {
                "maxmemory-policy": "noeviction",
                "appendonly": "yes",
            }
        with pod.client() as anyone, pytest.raises(redis.AuthenticationError):
            anyone.ping()
        with pod.client("operator", "wrong") as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


async def test_what_was_done_together_survives_a_killed_server(pod):
    with pod.running() as process:
        await pod.ready()
        with pod.client("operator", "first-password") as operator:
            with operator.pipeline(transaction=True) as together:
                together.xadd("{team-a.tasks}", {"m": "1"}).set("{team-a.tasks}:gate", "1").execute()
        process.kill()
        process.wait()
    with pod.running():
        await pod.ready()
        with pod.client("operator", "first-password") as operator:
            assert operator.xlen("{team-a.tasks}") == 1
            assert operator.get("{team-a.tasks}:gate") == "1"
        for password in ("", "first-password"):
            with pod.client("default", password) as stranger, pytest.raises(redis.AuthenticationError):
                stranger.ping()


async def test_messages_and_agents_survive_a_restart(pod):
    with pod.running():
        await pod.ready()
        with pod.client("operator", "first-password") as operator:
            operator.xadd("{team-a.tasks}", {"m": "1"})
            operator.execute_command("ACL", "SETUSER", "agentstream.team-a.coder", "on", ">secret", "+ping")
            operator.execute_command("ACL", "SAVE")

    with pod.running():
        await pod.ready()
        with pod.client("operator", "first-password") as operator:
            assert operator.xlen("{team-a.tasks}") == 1
            assert set(operator.acl_users()) == {"default", "operator", "agentstream.team-a.coder"}
        with pod.client("agentstream.team-a.coder", "secret") as agent:
            assert agent.ping()


async def test_messages_survive_a_killed_server(pod):
    with pod.running() as process:
        await pod.ready()
        with pod.client("operator", "first-password") as operator:
            operator.xadd("{team-a.tasks}", {"m": "1"})
        process.kill()
        process.wait()

    with pod.running():
        await pod.ready()
        with pod.client("operator", "first-password") as operator:
            assert operator.xlen("{team-a.tasks}") == 1


async def test_the_secrets_new_password_holds_after_a_restart(pod):
    with pod.running():
        await pod.ready()

    pod.password("second-password")
    with pod.running():
        await pod.ready()
        with pod.client("operator", "second-password") as operator:
            assert operator.ping()
        with pod.client("operator", "first-password") as old, pytest.raises(redis.AuthenticationError):
            old.ping()


async def test_an_operator_that_was_locked_out_comes_back_by_a_restart(pod):
    with pod.running():
        await pod.ready()
        with pod.client("operator", "first-password") as operator:
            operator.execute_command("ACL", "SETUSER", "operator", "off")
            operator.execute_command("ACL", "SAVE")
        # so that Kubernetes restarts it
        assert pod.ping("live").returncode == 1

    with pod.running():
        await pod.ready()


async def test_a_newline_at_the_end_of_the_secret_is_no_part_of_the_password(pod):
    pod.password("first-password\n")

    with pod.running():
        await pod.ready()
        with pod.client("operator", "first-password") as operator:
            assert operator.ping()


async def test_the_password_is_in_no_file_log_or_argument(pod):
    with pod.running() as process:
        await pod.ready()
        started_with = Path(f"/proc/{process.pid}")
        said = [(started_with / part).read_bytes() for part in ("cmdline", "environ")]

    said += [
        path.read_bytes()
        for path in pod.root.rglob("*")
        if path.is_file() and not path.is_symlink() and path.parent.name != "credentials"
    ]
    assert b"first-password" not in b"".join(said)
    assert pod.users.stat().st_mode & 0o077 == 0


async def test_probes_tell_a_server_that_is_down(pod):
    asked = pod.ping("live")

    assert asked.returncode == 1
    assert "refused" in asked.stderr.lower()


async def test_probes_tell_a_wrong_password(pod):
    with pod.running():
        await pod.ready()
        pod.password("wrong")
        for question in ("live", "ready"):
            asked = pod.ping(question)
            assert asked.returncode == 1
            assert "NOAUTH" in asked.stderr or "WRONGPASS" in asked.stderr


@pytest.mark.parametrize(
    ("reply", "live", "ready"),
    [
        ("PONG", 0, 0),
        ("LOADING Redis is loading the dataset in memory", 0, 1),
        ("BUSY Redis is busy running a script.", 0, 0),
        ("MISCONF Errors writing to the AOF file: No space left on device", 0, 0),
        ("NOPERM User operator has no permissions to run the 'ping' command", 1, 1),
        ("", 1, 1),
    ],
)
def test_what_probes_make_of_a_reply(pod, reply, live, ready):
    program = pod.root / "bin" / "redis-cli"
    program.write_text(f'#!/bin/sh\necho "{reply}"\n')

    assert (pod.ping("live").returncode, pod.ping("ready").returncode) == (live, ready)
