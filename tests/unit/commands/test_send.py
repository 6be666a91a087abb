"""`agentstream send`: who may send where, before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.fake_api import FakeApi, run, runs
from support.servers import free_port
from unit.resources.manifests import a_group, a_stream


def in_namespace(manifest: dict[str, Any], namespace: str) -> dict[str, Any]:
    return {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}


@pytest.fixture
def dev(api: FakeApi, folder: Path) -> Path:
    """The bindings of an `agentstream dev`, whose server has just gone."""
    runs(
        api,
        folder,
        a_stream(producers=["boss", "planner"]),
        a_stream("one", producers=["boss"]),
        a_stream("none"),
        a_group(),
        *(in_namespace(a_group("twice"), namespace) for namespace in ("a", "b")),
    )
    binding = folder / ".agentstream" / "bindings" / "default.boss"
    binding.mkdir(parents=True)
    entries = {"agent": "boss", "namespace": "default", "username": "u", "password": "secret"}
    for name, value in (entries | {"uri": f"redis://127.0.0.1:{free_port()}"}).items():
        (binding / name).write_text(value)
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("coder", "{}"), 2, "several agents may send to default/tasks: say which with --as (boss, planner)"),
        (
            ("coder", "{}", "--as", "coder"),
            1,
            "coder may not send to default/tasks: name it in spec.producers",
        ),
        (("coder", "{}", "--as", "planner"), 3, "planner has no credentials yet: "),
        (("none", "{}"), 1, "no agent may send to default/none: name one in spec.producers"),
        (("nobody", "{}"), 1, "there is no group and no stream nobody: `agentstream lag -A` lists all"),
        (("other/coder", "{}"), 1, "there is no group and no stream other/coder: "),
        (("coder", "{}", "-n", "other"), 1, "there is no group and no stream coder: "),
        (("twice", "{}"), 2, "twice is in several namespaces: say which with -n (a, b)"),
        (("coder", "[]"), 2, "PAYLOAD is no JSON object: "),
        (("coder", "{"), 2, "PAYLOAD is no JSON object: "),
        (("one", '{"a": ' + "[" * 200_000 + "]" * 200_000 + "}"), 2, "PAYLOAD is no JSON object: "),
        (("one", "{}", "--wait"), 2, "--wait: name a ConsumerGroup"),
        (("one", "{}", "--timeout", "soon"), 2, "--timeout: "),
        (("one", "{}", "--timeout", "1s"), 3, ""),
        (("one", "{}", "--key", "k" * 600), 2, ""),
    ],
)
def test_what_cannot_be_sent_is_a_line(dev: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    del dev
    ran = run("send", *arguments)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (code, "", 1), ran.err
    assert ran.err.startswith(f"error: {said}"), ran.err
    assert "secret" not in ran.err


def test_outside_of_the_folder_of_dev_a_cluster_is_meant_and_an_address_is_not_enough(folder: Path) -> None:
    del folder
    ran = run("send", "coder", "{}")
    assert (ran.code, ran.err.startswith("error: no cluster: ")) == (2, True)
    ran = run("send", "coder", "{}", "--api", "http://127.0.0.1:1")
    assert (ran.code, ran.err.startswith("error: --api: a message comes from an agent")) == (2, True)
