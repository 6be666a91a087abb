"""kube-controller-manager for tests: as few of the cluster's own controllers as a test needs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.apiserver import ApiServer, NoProgramsError
from support.servers import free_port

AUTOSCALING = ("horizontal-pod-autoscaler-controller", "deployment-controller", "replicaset-controller")


@contextmanager
def controllers(server: ApiServer, directory: Path, names: tuple[str, ...] = AUTOSCALING) -> Iterator[Path]:
    """Runs controllers, each as the service account that it has in a cluster. Yields their log.

    Autoscalers are looked at every second. Nothing schedules the pods that are made.

    Raises:
        NoProgramsError: there is no kube-controller-manager.
    """
    program = server.binaries / "kube-controller-manager"
    if not program.exists():
        raise NoProgramsError(f"there is no {program.name} in {program.parent}")
    log = directory / "controllers.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                program,
                f"--kubeconfig={server.kubeconfig}",
                f"--controllers={','.join(names)}",
                "--use-service-account-credentials",
                f"--service-account-private-key-file={server.directory / 'service-accounts.key'}",
                "--horizontal-pod-autoscaler-sync-period=1s",
                "--leader-elect=false",
                *("--bind-address=127.0.0.1", f"--secure-port={free_port()}"),
                f"--cert-dir={directory / 'controllers'}",
            ],
            stdout=output,
            stderr=output,
        )
    try:
        yield log
    finally:
        process.kill()
        process.wait()
