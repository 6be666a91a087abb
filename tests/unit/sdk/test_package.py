"""The package is light to import and shows what is public."""

from __future__ import annotations

import subprocess
import sys

import pytest

import agentstream

MEASURE = """
import sys, time
import agentstream
heavy = sorted({"redis", "asyncio", "msgspec"} & set(sys.modules))
assert not heavy, heavy
assert time.process_time() < 0.25, time.process_time()
"""


MEASURE_AGENT = """
import sys, time
from agentstream import Agent
optional = {"redis", "pydantic", "opentelemetry", "prometheus_client", "jsonschema_rs"}
unused = (optional | {"importlib.resources"}) & set(sys.modules)
assert not unused, unused
assert time.process_time() < 0.25, time.process_time()
"""


@pytest.mark.parametrize("program", [MEASURE, MEASURE_AGENT], ids=["the package", "an agent"])
def test_importing_it_loads_nothing_heavy(program: str) -> None:
    subprocess.run([sys.executable, "-I", "-c", program], check=True)


def test_every_public_name_can_be_used() -> None:
    assert all(getattr(agentstream, name) is not None for name in agentstream.__all__)
    assert set(agentstream.__all__) <= set(dir(agentstream))


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        agentstream.nothing  # noqa: B018
