"""kubectl as a user types it, against the API server of the tests."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class KubectlError(Exception):
    """It failed; the text is what it printed."""


@dataclass(frozen=True)
class Kubectl:
    """The command in one namespace.

    Attributes:
        program: where it is.
        kubeconfig: whose access it uses.
        namespace: the default for every call.
        cache: where it keeps what it learnt of the server.
    """

    program: Path
    kubeconfig: Path
    namespace: str
    cache: Path

    def __call__(self, *arguments: str, manifest: Any = None) -> str:
        """Runs it. Returns what it printed, warnings included.

        Args:
            arguments: as on a command line.
            manifest: an object, or several in a list, for `-f -`.

        Raises:
            KubectlError: it failed.
        """
        done = self._run(arguments, manifest)
        if done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def fails(self, *arguments: str, manifest: Any = None) -> str:
        """Runs it and expects it to fail. Returns what it printed."""
        done = self._run(arguments, manifest)
        assert done.returncode != 0, f"kubectl {' '.join(arguments)} did not fail: {done.stdout}"
        return done.stdout + done.stderr

    def apply(self, *manifests: dict[str, Any]) -> str:
        """`kubectl apply` of these objects. Returns what it printed."""
        return self("apply", "-f", "-", manifest=list(manifests))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """An object."""
        found: dict[str, Any] = self._json("get", kind, name)
        return found

    def list(self, kind: str, *arguments: str) -> list[dict[str, Any]]:
        """The objects of a kind."""
        found: list[dict[str, Any]] = self._json("get", kind, *arguments)["items"]
        return found

    def _json(self, *arguments: str) -> Any:
        done = self._run((*arguments, "-o", "json"), None)
        if done.returncode != 0:
            raise KubectlError(done.stderr)
        return json.loads(done.stdout)

    def _run(self, arguments: tuple[str, ...], manifest: Any) -> subprocess.CompletedProcess[str]:
        objects = manifest if isinstance(manifest, list) else [manifest]
        # every JSON document is YAML, too
        text = None if manifest is None else "\n---\n".join(map(json.dumps, objects))
        return subprocess.run(
            [self.program, "--namespace", self.namespace, *arguments],
            env={
                "KUBECONFIG": str(self.kubeconfig),
                "KUBECACHEDIR": str(self.cache),
                "HOME": str(self.cache),
                "PATH": os.environ["PATH"],
            },
            input=text or "",
            capture_output=True,
            text=True,
            check=False,
        )
