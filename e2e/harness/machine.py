"""What this machine has to offer: an image registry that answers, or the means to do without one."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.shell import ROOT, CommandFailed, run

UP = ROOT / "e2e" / "airgap" / "up"
REDIS_IMAGE = "redis:8.2.10"
PYTHON_IMAGE = "python:3.13-slim"


@dataclass(frozen=True)
class Machine:
    """A machine on which clusters can be made.

    Attributes:
        path: where the programs kind, kubectl and helm are found, as in PATH.
        node_image: the image of the cluster's nodes; kind's own if None.
    """

    path: str
    node_image: str | None

    def run(
        self, *command: str | Path, kubeconfig: Path | None = None, stdin: str = "", timeout: float = 60
    ) -> str:
        """Runs a command with the machine's programs; as `shell.run`."""
        return run(*command, stdin=stdin, env=self._environment(kubeconfig), timeout=timeout)

    def start(self, *command: str, kubeconfig: Path) -> subprocess.Popen[str]:
        """Starts a command with the machine's programs; what it prints can be read."""
        env = os.environ | self._environment(kubeconfig)
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)

    def _environment(self, kubeconfig: Path | None) -> dict[str, str]:
        env = {"PATH": self.path}
        if kubeconfig is not None:
            # whatever is remembered of the cluster goes with it, too
            env |= {"KUBECONFIG": str(kubeconfig), "KUBECACHEDIR": str(kubeconfig.with_name("cache"))}
        return env


def prepare() -> Machine:
    """Makes the machine ready, and says what it has.

    E2E_NODE_IMAGE names another image for the nodes than kind's own; it must be there, or a registry have it.

    Raises:
        CommandFailed: there is no Docker engine, and none could be started, or a program cannot be had.
    """
    here, node_image = os.environ["PATH"], os.environ.get("E2E_NODE_IMAGE")
    if node_image or _registry_answers():
        missing = [program for program in ("kind", "kubectl", "helm") if shutil.which(program) is None]
        path = f"{here}:{_programs(_up('tools'))}" if missing else here
        return Machine(path, node_image)
    said = _up("everything")
    return Machine(f"{_programs(said)}:{here}", said["node image"])


def _up(what: str) -> dict[str, str]:
    """Makes ready what e2e/airgap offers under this name. Returns what it says that there is."""
    # building Kubernetes takes ten minutes on two cores, once
    lines = run(UP, what, timeout=2400).splitlines()
    return dict(line.split(": ", 1) for line in lines)


def _programs(said: dict[str, str]) -> str:
    return said["programs"].partition(" (")[0]


def _registry_answers() -> bool:
    """Whether the images that are built upon can be pulled; they are there afterwards, if so."""
    try:
        for image in (PYTHON_IMAGE, REDIS_IMAGE):
            run("docker", "pull", "--quiet", image, timeout=300)
    except (CommandFailed, FileNotFoundError):
        return False
    return True
