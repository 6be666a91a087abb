"""The images of this project, built as its documents say."""

from __future__ import annotations

from pathlib import Path

from harness.machine import REDIS_IMAGE, Machine
from harness.shell import ROOT, CommandFailed

OPERATOR = "agentstream:0.1.0"
NEXT_OPERATOR = "agentstream:next"
"""The same under another name, for an upgrade."""

QUICKSTART = "agentstream-quickstart:latest"
COUNTING = "agentstream-e2e:latest"
"""The agents that `Load` counts with."""

_DOCKERFILES = {
    OPERATOR: ("Dockerfile", "."),
    QUICKSTART: ("examples/quickstart/Dockerfile", "."),
    COUNTING: ("e2e/agent/Dockerfile", "e2e/agent"),
}


def build(machine: Machine, directory: Path) -> Path:
    """Builds all images. Returns an archive in `directory` that has them, and what they need besides."""
    builder = f"DOCKER_BUILDKIT={int(_has_buildx(machine))}"
    for tag, (file, context) in _DOCKERFILES.items():
        machine.run(
            "env", builder, "docker", "build", "--tag", tag, "--file", file, ROOT / context, timeout=900
        )
    machine.run("docker", "tag", OPERATOR, NEXT_OPERATOR)
    archive = directory / "images.tar"
    tags = (*_DOCKERFILES, NEXT_OPERATOR, REDIS_IMAGE)
    machine.run("docker", "save", "--output", archive, *tags, timeout=300)
    return archive


def _has_buildx(machine: Machine) -> bool:
    try:
        machine.run("docker", "buildx", "version")
    except CommandFailed:
        return False
    return True
