"""What all documents have in common, and errors."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class Answer(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class Mistake(Answer):
    """What is wrong with a part of a request."""

    pointer: str
    """Where: `query/limit`, `path/namespace`, or `body/from/since`."""

    detail: str
    """What is wrong there."""


class Problem(Answer):
    """An error, as in RFC 9457; the media type is `application/problem+json`."""

    type: str = "about:blank"
    """A URI of the kind of error; `about:blank`: the status says it all."""

    title: str
    """The HTTP status in words."""

    status: Annotated[int, Field(ge=400, le=599)]
    """The HTTP status."""

    detail: str
    """What went wrong."""

    remedy: str
    """What to do about it."""

    errors: tuple[Mistake, ...] = ()
    """The mistakes of the request, one by one."""


class Looked(Answer):
    """What was looked at: a search that finds nothing has not always looked at everything."""

    scanned: Count
    """Entries that were looked at."""

    from_: Annotated[str | None, Field(alias="from")] = None
    """Entry id of the first one that was looked at; null if there was none."""

    to: str | None = None
    """Entry id of the last one."""

    more: bool
    """Whether there are more to look at."""

    cursor: str | None = None
    """Goes on from here, as the parameter `cursor` of the same call; null at the end."""
