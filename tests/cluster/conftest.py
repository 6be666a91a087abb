"""Fixtures for tests on a real API server: the server, a namespace of one's own, kubectl, the operator."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from cluster.adapter import Adapter, adapter_of
from cluster.team import Team
from support.apiserver import ApiServer, NoProgramsError, private_server, shared_server
from support.deployed import Deployed, grant
from support.kubectl import Kubectl
from support.servers import Server, builds

_numbers = itertools.count(1)
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "test")


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One API server with the CRDs for all processes of this run; it ends with the last of them."""
    directory = tmp_path_factory.getbasetemp()
    try:
        with shared_server(directory if _WORKER == "test" else directory.parent) as server:
            yield server
    except NoProgramsError as missing:
        _skip(missing)


@pytest.fixture
def own_api_server() -> Iterator[ApiServer]:
    """An API server of the test's own, which it may kill."""
    try:
        with private_server() as server:
            yield server
    except NoProgramsError as missing:
        _skip(missing)


def _skip(missing: NoProgramsError) -> NoReturn:
    pytest.skip(f"NO API SERVER, NOTHING OF KUBERNETES IS TESTED: {missing}")


@pytest.fixture
def namespace(api_server: ApiServer) -> Iterator[str]:
    """A namespace that is empty and nobody else's."""
    name = f"{_WORKER}-{next(_numbers)}"
    api_server.create_namespace(name)
    yield name
    api_server.drop_policies(name)


@pytest.fixture
def kubectl(api_server: ApiServer, namespace: str) -> Kubectl:
    """kubectl as the administrator types it in the namespace of the test."""
    return api_server.kubectl(namespace)


@pytest.fixture
def unique() -> str:
    """A part of a name that no other test has."""
    return f"t{next(_numbers)}{_WORKER}"


@pytest.fixture(scope="session")
def shared_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of the shared operator."""
    server = Server(builds()[0], tmp_path_factory.mktemp("broker"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def shared_operator(
    api_server: ApiServer, shared_broker: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    """An operator for all tests of this process that let it be, in a namespace of its own."""
    home = f"{_WORKER}-shared"
    api_server.create_namespace(home)
    operator = Deployed(
        api_server,
        grant(api_server, home, (home,)),
        shared_broker.url,
        tmp_path_factory.mktemp("operator"),
        namespaces=(home,),
    )
    operator.start()
    yield operator
    assert operator.stop() == 0, operator.log


@pytest.fixture
async def operator(shared_operator: Deployed) -> AsyncIterator[Deployed]:
    """The shared operator, which must not complain in the meantime."""
    await shared_operator.leading()
    shared_operator.forget()
    yield shared_operator
    assert not shared_operator.complaints(), "\n".join(shared_operator.complaints())


@pytest.fixture
def team(operator: Deployed, api_server: ApiServer) -> Team:
    """The namespace that the shared operator serves; other tests have resources there, too."""
    return Team(api_server, operator.home)


@pytest.fixture
async def adapter(own_team: Team) -> AsyncIterator[Adapter]:
    """The operator's adapter for the namespace of the test."""
    async with adapter_of(own_team) as connected:
        yield connected


Deploy = Callable[..., Deployed]


@pytest.fixture
async def deploy(
    api_server: ApiServer, namespace: str, private_server: Server, tmp_path: Path
) -> AsyncIterator[Deploy]:
    """Starts operators of one's own for the namespace of the test, which may be killed."""
    user = grant(api_server, namespace, (namespace,))
    operators: list[Deployed] = []

    def start(pod: str = "agentstream-0", *arguments: str) -> Deployed:
        operator = Deployed(api_server, user, private_server.url, tmp_path, namespaces=(namespace,), pod=pod)
        operators.append(operator)
        operator.start(*arguments)
        return operator

    yield start
    complaints = [complaint for operator in operators for complaint in operator.complaints()]
    for operator in operators:
        operator.kill()
    assert not complaints, "\n".join(complaints)


@pytest.fixture
def own_team(api_server: ApiServer, namespace: str) -> Team:
    """The namespace of a test with operators of its own."""
    return Team(api_server, namespace)
