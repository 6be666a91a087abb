"""Both versions of helm."""

from __future__ import annotations

import pytest

from support.helm import HELMS, PROMETHEUS, Helm, Rendered
from unit.chart.variants import VARIANTS


@pytest.fixture(params=HELMS, ids=lambda helm: f"helm{helm.major}")
def helm(request: pytest.FixtureRequest) -> Helm:
    """Each version."""
    chosen: Helm = request.param
    return chosen


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, helm: Helm) -> Rendered:
    """The release with each set of values."""
    return helm.render(VARIANTS[request.param], knows=PROMETHEUS)
