"""Both faces have the same names and parameters, so that they cannot drift apart."""

from __future__ import annotations

import inspect
import pydoc
import re

import pytest

import agentstream
from agentstream import sync
from agentstream.consuming import once
from agentstream.consuming.delivery import Delivery
from agentstream.testing import SyncSandbox

FACES = [
    (agentstream.Agent, sync.Agent),
    (agentstream.Delivery, sync.Delivery),
    (agentstream.Deliveries, sync.Deliveries),
    (agentstream.Notifications, sync.Notifications),
    (agentstream.Receipt, sync.Receipt),
    (once.Once, sync.Once),
]
CALLED_ELSE = {"aclose": "close"}
# of instances, where the other face has properties
ATTRIBUTES = {"deadline", "sent", "expected", "name", "namespace"}
OTHER_WORDS = re.compile(r"async (with|for)|await|StopAsync|aclose|\ba i")
PROTOCOL = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
}


def names(face: type) -> set[str]:
    return {CALLED_ELSE.get(name, name) for name in dir(face) if not name.startswith("_")}


def members(faces: tuple[type, type]) -> list[tuple[object, object]]:
    original, mirror = faces
    other = {mine: its for its, mine in CALLED_ELSE.items()}
    return [
        (inspect.getattr_static(original, other.get(name, name)), inspect.getattr_static(mirror, name))
        for name in sorted(names(mirror) - ATTRIBUTES)
    ]


@pytest.mark.parametrize("faces", FACES, ids=lambda faces: faces[1].__name__)
def test_both_faces_have_the_same_names(faces: tuple[type, type]) -> None:
    original, mirror = faces
    assert names(original) - ATTRIBUTES == names(mirror) - ATTRIBUTES
    assert {PROTOCOL.get(name) for name in dir(original)} & {*dir(mirror)} == {
        PROTOCOL[name] for name in PROTOCOL if name in dir(original)
    }


@pytest.mark.parametrize("faces", FACES, ids=lambda faces: faces[1].__name__)
def test_both_faces_take_the_same(faces: tuple[type, type]) -> None:
    for original, mirror in members(faces):
        assert type(original) is type(mirror) or isinstance(mirror, property), (original, mirror)
        if isinstance(original, classmethod) and isinstance(mirror, classmethod):
            original, mirror = original.__func__, mirror.__func__  # noqa: PLW2901
        if callable(original) and callable(mirror):
            shown = str(inspect.signature(mirror)).replace("Sync", "")
            assert str(inspect.signature(original)).replace("AsyncIterator", "Iterator") == shown, original
            assert not inspect.iscoroutinefunction(mirror)


def test_there_is_a_face_for_whatever_agents_and_deliveries_return() -> None:
    """What an asynchronous agent hands out and has coroutines of its own has a mirror here."""
    mirrored = {original for original, _ in FACES}
    for face in (agentstream.Agent, Delivery):
        for name in names(face) & set(dir(face)):
            returned = getattr(getattr(face, name), "__annotations__", {}).get("return", "")
            kind = getattr(agentstream, str(returned).partition("[")[0], None)
            if isinstance(kind, type) and any(map(inspect.iscoroutinefunction, vars(kind).values())):
                assert kind in mirrored, f"{name} returns {returned}"


def test_every_public_name_is_documented_in_words_of_this_face() -> None:
    for kind in (*(getattr(sync, face) for face in sync.__all__), SyncSandbox):
        texts = {
            name: inspect.getdoc(getattr(kind, name))
            for name in (*names(kind), "__enter__", "__next__")
            if hasattr(kind, name)
        }
        assert kind.__doc__
        assert all(texts.values()), texts
        assert not [name for name, text in texts.items() if OTHER_WORDS.search(text or "")]


def test_attributes_of_the_original_are_read_only_and_have_its_types() -> None:
    for original, mirror in FACES:
        for name, kind in inspect.get_annotations(mirror).items():
            source, shown = getattr(original, name, None), vars(mirror)[name]
            assert isinstance(shown, property)
            assert shown.fset is None
            assert source is None or source.fget.__annotations__["return"] == kind


def test_help_shows_what_a_method_takes_and_says() -> None:
    shown = pydoc.plain(pydoc.render_doc(sync.Agent))
    assert "send_message(self, *, type: 'MessageType', payload: 'Any', to: 'str | None' = None" in shown
    assert "**options: 'Unpack[SendOptions]') -> 'SentMessage'\n |      Sends one message." in shown
    assert sync.Agent.send_message.__qualname__ == "SyncAgent.send_message"
