"""The package is light to import; what is public says what it does, and what it raises."""

from __future__ import annotations

import builtins
import inspect
import re
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

import agentstream
import agentstream.sync
import agentstream.testing

FACES = (agentstream, agentstream.sync)
ENTERED = {"__aenter__", "__aexit__", "__anext__", "__enter__", "__exit__", "__next__"}
MIRRORED = {"aclose": "close", "__aexit__": "__exit__", "__aenter__": "__enter__", "__anext__": "__next__"}

# The verbs return whether the message was still held: that it was not, or that nobody knows, is no error.
CANNOT_RAISE = {
    "Agent": {"connect", "stop", "__exit__"},
    "Deliveries": {"aclose", "close", "__aenter__", "__aexit__", "__enter__", "__exit__"},
    "Delivery": {
        *("ack", "dead_letter", "release"),
        *("__aenter__", "__aexit__", "__enter__", "__exit__"),
    },
    "Notifications": {
        *("aclose", "close", "__anext__", "__next__"),
        *("__aenter__", "__aexit__", "__enter__", "__exit__"),
    },
}


def public_names() -> list[Any]:
    """Each public name with its module."""
    modules = (*FACES, agentstream.testing)
    return [
        pytest.param(module, name, id=f"{module.__name__}.{name}")
        for module in modules
        for name in module.__all__
    ]


def methods() -> list[Any]:
    """What can be called of the classes that do something, of both faces."""
    found = []
    for face in FACES:
        for name in ("Agent", "Deliveries", "Delivery", "Notifications", "Receipt"):
            for method, function in inspect.getmembers(getattr(face, name), callable):
                if not method.startswith("_") or method in ENTERED:
                    found.append(pytest.param(name, method, function, id=f"{face.__name__}.{name}.{method}"))
    return found


def raised(function: Any) -> set[str]:
    """The names of the errors that a docstring lists."""
    section = (inspect.getdoc(function) or "").partition("Raises:\n")[2].partition("\n\n")[0]
    # an entry may go on for several lines: `A, B,\n  C: why`
    heads = re.findall(r"^ {4}(\S[^:]*):", section, re.MULTILINE)
    return {name for head in heads for name in re.findall(r"[A-Z]\w+", head)}


@pytest.mark.parametrize(("module", "name"), public_names())
def test_a_public_name_has_a_docstring_as_all_that_is_public_of_it(module: ModuleType, name: str) -> None:
    value = getattr(module, name)
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        own = [(member, each) for member, each in vars(value).items() if not member.startswith("_")]
        said = [(member, getattr(value, member)) for member, each in own if callable(each) or _is_said(each)]
        assert [member for member, each in said if not inspect.getdoc(each)] == []


def _is_said(member: Any) -> bool:
    return isinstance(member, property | classmethod | staticmethod)


@pytest.mark.parametrize(("owner", "name", "method"), methods())
def test_what_can_raise_says_so(owner: str, name: str, method: Any) -> None:
    listed = raised(method)
    if name in CANNOT_RAISE.get(owner, ()):
        assert not listed, "it is listed as what cannot raise"
    else:
        assert listed, "say what it raises, or list it as what cannot"


@pytest.mark.parametrize(("owner", "name", "method"), methods())
def test_what_is_said_to_be_raised_can_be_caught(owner: str, name: str, method: Any) -> None:
    for error in raised(method):
        known = getattr(agentstream, error, None) or getattr(builtins, error, None)
        assert isinstance(known, type), error
        assert issubclass(known, BaseException), error


@pytest.mark.parametrize(
    ("owner", "name", "method"), [each for each in methods() if ".sync" not in str(each.id)]
)
def test_both_faces_raise_the_same(owner: str, name: str, method: Any) -> None:
    mirror = getattr(getattr(agentstream.sync, owner), MIRRORED.get(name, name))
    # the end of an iteration has a name of its own in each
    assert raised(method) - raised(mirror) <= {"StopAsyncIteration", "SystemExit"}


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
