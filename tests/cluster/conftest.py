"""Fixtures for tests on a real API server: the server, a namespace of one's own, kubectl."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from support.apiserver import ApiServer, NoProgramsError, shared_server
from support.kubectl import Kubectl

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One API server with the CRDs for all processes of this run; it ends with the last of them."""
    directory = tmp_path_factory.getbasetemp()
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    try:
        with shared_server(directory.parent if worker else directory) as server:
            yield server
    except NoProgramsError as missing:
        pytest.skip(f"NO API SERVER, NOTHING OF KUBERNETES IS TESTED: {missing}")


@pytest.fixture
def namespace(api_server: ApiServer) -> str:
    """A namespace that is empty and nobody else's."""
    name = f"{os.environ.get('PYTEST_XDIST_WORKER', 'test')}-{next(_numbers)}"
    api_server.create_namespace(name)
    return name


@pytest.fixture
def kubectl(api_server: ApiServer, namespace: str) -> Kubectl:
    """kubectl as the administrator types it in the namespace of the test."""
    return api_server.kubectl(namespace)
