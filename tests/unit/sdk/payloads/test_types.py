import dataclasses
import datetime as dt
import subprocess
import sys
from typing import Any, ClassVar, Generic, NamedTuple, TypedDict, TypeVar

import msgspec
import pydantic
import pytest
import typing_extensions

from agentstream.errors import InvalidMessage, InvalidPayload
from agentstream.payloads.types import (
    is_payload_type,
    json_schema_of,
    payload_of,
    reader_of,
    to_type,
    version_of,
)
from agentstream.protocol.contracts import validator

T = TypeVar("T")


class Plan(msgspec.Struct):
    __schema_version__ = 3
    doc: int
    due: dt.datetime | None = None


class Stop(msgspec.Struct, tag=True):
    why: str


class Go(msgspec.Struct, tag=True):
    where: str


class Page(msgspec.Struct, Generic[T]):
    item: T


@dataclasses.dataclass
class Order:
    doc: int
    pages: list[int] = dataclasses.field(default_factory=list)


class Note(TypedDict):
    doc: int


class OtherNote(typing_extensions.TypedDict):
    doc: int


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    __schema_version__: ClassVar[int] = 2
    doc: int
    due: dt.datetime | None = None
    parts: list["Model"] = []
    source: str = pydantic.Field("", alias="from")


DUE = dt.datetime(2030, 1, 2, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("value", "payload"),
    [
        ({"doc": 1}, {"doc": 1}),
        (Plan(1, DUE), {"doc": 1, "due": "2030-01-02T00:00:00Z"}),
        (Order(1, [2]), {"doc": 1, "pages": [2]}),
        (Go("on"), {"type": "Go", "where": "on"}),
        (
            Model(doc=1, due=DUE, **{"from": "a"}),
            {"doc": 1, "due": "2030-01-02T00:00:00Z", "parts": [], "from": "a"},
        ),
        (Page({1: 2}), {"item": {"1": 2}}),
    ],
)
def test_a_payload_stands_for_a_json_object_and_is_read_back_from_it(value, payload):
    kind = Page[dict[int, int]] if isinstance(value, Page) else type(value)

    assert payload_of(value) == payload
    assert to_type(payload, kind) == value


class Row(msgspec.Struct, array_like=True):
    doc: int


class Pair(NamedTuple):
    doc: int


@pytest.mark.parametrize("value", [None, 7, "doc", [1], Row(1), Pair(1), Plan, object()])
def test_what_is_no_json_object_is_no_payload(value):
    with pytest.raises(InvalidPayload, match="a payload is a JSON object"):
        payload_of(value)


def test_a_payload_may_hold_only_what_json_can():
    with pytest.raises(InvalidPayload, match="Order holds what JSON cannot"):
        payload_of(Order(1, [object()]))


@pytest.mark.parametrize("kind", [dict, dict[str, Any], Any])
def test_a_raw_payload_is_the_object_itself(kind):
    payload = {"doc": object()}

    assert to_type(payload, kind) is payload


@pytest.mark.parametrize("kind", [Note, OtherNote, dict[str, int]])
def test_a_typed_dict_is_a_dict_that_was_checked(kind):
    assert to_type({"doc": 1}, kind) == {"doc": 1}
    with pytest.raises(InvalidPayload, match="Expected `int`, got `str` - at"):
        to_type({"doc": "1"}, kind)


def test_structs_with_tags_are_told_apart():
    read = reader_of(Stop | Go)

    assert read({"type": "Stop", "why": "done"}) == Stop("done")
    assert read({"type": "Go", "where": "on"}) == Go("on")


class Picky(pydantic.BaseModel):
    doc: int

    @pydantic.field_validator("doc")
    @classmethod
    def _look_up(cls, doc: int) -> int:
        return {1: 1}[doc]


class Whole(pydantic.BaseModel):
    doc: int = 0

    @pydantic.model_validator(mode="after")
    def _refuse(self) -> "Whole":
        raise ValueError("on the whole, no")


@pytest.mark.parametrize(
    ("payload", "kind", "problem"),
    [
        ({"doc": "1"}, Plan, r"no Plan: Expected `int`, got `str` - at `\$\.doc`$"),
        ({"doc": 1, "pages": [1, "2"]}, Order, r"got `str` - at `\$\.pages\[1\]`$"),
        ({}, Note, r"missing required field `doc`$"),
        ({"doc": 1, "parts": [{"doc": "1"}]}, Model, r"valid integer - at `\$\.parts\[0\]\.doc`$"),
        ({"doc": 2}, Picky, r"no Picky: KeyError: 2$"),
        ({}, Whole, r"no Whole: Value error, on the whole, no$"),
        ({"type": "Wait"}, Stop | Go, r"Invalid value 'Wait' - at `\$\.type`$"),
    ],
)
def test_a_payload_that_does_not_fit_is_told_where(payload, kind, problem):
    with pytest.raises(InvalidPayload, match=problem) as refused:
        to_type(payload, kind)

    assert isinstance(refused.value, InvalidMessage)
    assert refused.value.reason == "InvalidPayload"


@pytest.mark.parametrize("kind", [int, str, list, list[Plan], Plan | Order, Plan | None, Pair, 7, "Plan"])
def test_no_payload_has_another_type(kind):
    assert not is_payload_type(kind)
    with pytest.raises(TypeError, match="a payload is a dict"):
        to_type({}, kind)


class Unread(msgspec.Struct):
    a: list[str] | set[str]


def test_a_type_that_cannot_be_read_is_refused_before_there_is_a_payload():
    with pytest.raises(TypeError, match="not supported"):
        reader_of(Unread)


def test_a_class_names_the_version_of_its_payloads():
    assert version_of(Plan) == version_of(Plan(1)) == 3
    assert version_of(Model) == version_of(Model(doc=1)) == 2
    assert version_of({"doc": 1}) is version_of(Order) is None


def test_pydantic_is_not_imported():
    code = (
        "import sys\nfrom agentstream.payloads.types import payload_of, to_type\n"
        "to_type(payload_of({}), dict)\n"
        "assert 'pydantic' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


class Tree(msgspec.Struct):
    children: list["Tree"]


class ModelTree(pydantic.BaseModel):
    children: list["ModelTree"]


@pytest.mark.parametrize(
    ("kind", "fits", "does_not"),
    [
        (Plan, {"doc": 1}, {}),
        (Order, {"doc": 1}, {"doc": "1"}),
        (Note, {"doc": 1}, {"doc": None}),
        (Stop | Go, {"type": "Go", "where": "on"}, {"type": "Wait"}),
        (Model, {"doc": 1, "from": "a"}, {"doc": 1, "parts": [{}]}),
        (Tree, {"children": [{"children": []}]}, {"children": [{}]}),
        (ModelTree, {"children": [{"children": []}]}, {"children": [{}]}),
        (dict, {}, []),
    ],
)
def test_the_schema_of_a_type_is_a_contract_for_its_payloads(kind, fits, does_not):
    schema = json_schema_of(kind)

    assert schema["type"] == "object"
    assert validator(schema).is_valid(fits)
    assert not validator(schema).is_valid(does_not)


def test_what_is_no_type_of_payloads_has_no_schema():
    with pytest.raises(TypeError, match="a payload is a dict"):
        json_schema_of(list[int])
