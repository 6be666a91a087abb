"""A cluster of containers on this machine, by kind (https://kind.sigs.k8s.io)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.kubectl import Kubectl
from harness.machine import Machine
from harness.shell import ROOT
from harness.waiting import until

NODE_PORT = 30080
"""The port of the nodes that this machine can reach, by `Cluster.address`."""

_CONFIG = f"""\
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
  - role: control-plane
    extraPortMappings: [{{containerPort: {NODE_PORT}, hostPort: 0, listenAddress: 127.0.0.1}}]
  - role: worker
  - role: worker
"""
_NETWORK = "kind"


@dataclass(frozen=True)
class Cluster:
    """A cluster of one control plane and two workers.

    Attributes:
        machine: where it runs.
        name: its name.
        kubeconfig: how it is reached.
    """

    machine: Machine
    name: str
    kubeconfig: Path

    @property
    def kubectl(self) -> Kubectl:
        """kubectl for this cluster."""
        return Kubectl(self.machine, self.kubeconfig)

    @property
    def control_plane(self) -> str:
        """The node of the control plane, which is the name of its container, too."""
        return f"{self.name}-control-plane"

    @property
    def workers(self) -> Sequence[str]:
        """The nodes that run pods."""
        return f"{self.name}-worker", f"{self.name}-worker2"

    def create(self, directory: Path) -> None:
        """Makes the cluster, with volumes; `directory` is for files that are needed meanwhile."""
        config = directory / "kind.yaml"
        config.write_text(_CONFIG)
        image = ("--image", self.machine.node_image) if self.machine.node_image else ()
        self._kind("create", "cluster", "--config", config, "--wait", "120s", *image, timeout=600)
        self.kubectl.wait("nodes", "--all", condition="condition=Ready", timeout=120)
        classes = {c["metadata"]["name"]: c for c in self.kubectl.items("storageclasses")}
        if classes.get("standard", {}).get("provisioner") == "kubernetes.io/host-path":
            self.machine.run(ROOT / "e2e" / "airgap" / "volumes", self.kubeconfig)

    def delete(self) -> None:
        """Deletes the cluster."""
        self._kind("delete", "cluster", timeout=180)

    def load(self, archive: Path) -> None:
        """Gives the nodes the images of an archive."""
        self._kind("load", "image-archive", archive, timeout=600)

    def address(self) -> tuple[str, int]:
        """Where this machine reaches the nodes' port."""
        lines = self.machine.run("docker", "port", self.control_plane, f"{NODE_PORT}/tcp")
        host, _, port = lines.splitlines()[0].rpartition(":")
        return host, int(port)

    def on_node(self, node: str, *command: str, timeout: float = 60) -> str:
        """Runs a command on a node."""
        return self.machine.run("docker", "exec", node, *command, timeout=timeout)

    @contextmanager
    def paused(self, node: str) -> Iterator[None]:
        """A node on which nothing moves, and that answers nobody."""
        self.machine.run("docker", "pause", node)
        try:
            yield
        finally:
            self.machine.run("docker", "unpause", node)
            self._node_is_back(node)

    @contextmanager
    def cut_off(self, node: str) -> Iterator[None]:
        """A node that goes on and reaches nobody."""
        address = self._address_of(node)
        self.machine.run("docker", "network", "disconnect", _NETWORK, node)
        try:
            yield
        finally:
            self.machine.run("docker", "network", "connect", _NETWORK, node)
            # the kubelet goes by the address that the node had first
            if self._address_of(node) != address:
                link = self.on_node(node, "ip", "-o", "route", "show", "default").split(" dev ")[1].split()[0]
                self.on_node(node, "ip", "address", "add", address, "dev", link)
            self._node_is_back(node)

    def restart_api_server(self) -> None:
        """Kills the API server; its node starts it again."""
        # asked to end, it would wait for its clients
        self.on_node(self.control_plane, "pkill", "-KILL", "-x", "kube-apiserver")

    def _node_is_back(self, node: str) -> None:
        def beats() -> bool:
            self.kubectl.wait(f"node/{node}", condition="condition=Ready", timeout=1)
            return True

        until(beats, 120, despite_errors=True)

    def _address_of(self, node: str) -> str:
        found = json.loads(self.machine.run("docker", "inspect", node))[0]["NetworkSettings"]["Networks"][
            _NETWORK
        ]
        return f"{found['IPAddress']}/{found['IPPrefixLen']}"

    def _kind(self, *arguments: str | Path, timeout: float) -> None:
        self.machine.run("kind", *arguments, "--name", self.name, kubeconfig=self.kubeconfig, timeout=timeout)
