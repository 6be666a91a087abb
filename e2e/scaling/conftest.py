"""Groups whose consumers follow their backlog."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from harness.chart import Installation
from harness.crew import Crew
from harness.kubectl import Kubectl
from harness.ledger import Ledger
from harness.watch import Watch


@pytest.fixture(scope="module")
def watch(place: Kubectl) -> Iterator[Watch]:
    """Sees how many consumers there are."""
    with Watch(place) as watch:
        yield watch


_numbers = itertools.count()


@pytest.fixture
def crew(installation: Installation, place: Kubectl, ledger: Ledger, watch: Watch) -> Iterator[Crew]:
    """A stream and a group, yet to be declared."""
    crew = Crew(place, installation.redis, ledger, watch, f"crew{next(_numbers)}")
    yield crew
    place("delete", f"consumergroup/{crew.name}", f"agentstream/{crew.name}", "--ignore-not-found")
    place("delete", "pods", "--selector", f"agentstream.dev/group={crew.name}", "--force", "--grace-period=0")
