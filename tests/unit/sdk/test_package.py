"""The package is light to import and shows what is public."""

from __future__ import annotations

import subprocess
import sys

import pytest

import agentstream

LOADED = """
import sys
before = set(sys.modules)
{statement}
print(*(set(sys.modules) - before))
"""


def loaded(statement: str) -> set[str]:
    """The modules that a statement loads in a new process, but for the light part of the standard library."""
    program = LOADED.format(statement=statement)
    done = subprocess.run([sys.executable, "-I", "-c", program], check=True, capture_output=True, text=True)
    light = sys.stdlib_module_names - {"asyncio"}
    names = set(done.stdout.split())
    return {name for name in names if name.partition(".")[0] not in light} | names & {"importlib.resources"}


def test_importing_the_package_loads_nothing_else() -> None:
    assert loaded("import agentstream") == {"agentstream"}


def test_importing_an_agent_loads_no_optional_package() -> None:
    packages = {name.partition(".")[0] for name in loaded("from agentstream import Agent")}
    assert packages <= {"agentstream", "asyncio", "hiredis", "msgspec", "typing_extensions"}


def test_every_public_name_can_be_used() -> None:
    assert all(getattr(agentstream, name) is not None for name in agentstream.__all__)
    assert set(agentstream.__all__) <= set(dir(agentstream))


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        agentstream.nothing  # noqa: B018
