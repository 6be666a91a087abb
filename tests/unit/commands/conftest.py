"""A folder in which an `agentstream dev` runs, whose API answers what the test says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fake_api import FakeApi, fake_api


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run commands in; neither the environment nor a kubeconfig names an API."""
    for name in ("AGENTSTREAM_API", "AGENTSTREAM_TOKEN_FILE", "AGENTSTREAM_API_NAMESPACE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        "kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig")
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def api(folder: Path) -> Iterator[FakeApi]:
    with fake_api(folder) as api:
        yield api
