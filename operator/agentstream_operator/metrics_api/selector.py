"""Label selectors as in queries of the Kubernetes API. No input or output.

https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_KEY = r"(?:[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"
_REQUIREMENT = re.compile(
    rf"\s*(?:(?P<absent>!)\s*(?P<missing>{_KEY})"
    rf"|(?P<key>{_KEY})(?:\s*(?P<operator>==|=|!=)\s*(?P<value>{_VALUE})"
    rf"|\s+(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?)\s*(?:,|$)"
)
_ONE = re.compile(rf"\s*({_VALUE})\s*")


class NoSelector(ValueError):  # noqa: N818 - it says what is wrong
    """A text that is no label selector."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """What the label of one key is to be.

    Attributes:
        key: the label's key.
        values: of which values; None for any.
        negative: whether it is to be none of these, or absent.
    """

    key: str
    values: frozenset[str] | None
    negative: bool

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels are like that."""
        value = labels.get(self.key)
        matches = value is not None and (self.values is None or value in self.values)
        return matches is not self.negative


@dataclass(frozen=True, slots=True)
class Selector:
    """Requirements that must all hold."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels are as required."""
        return all(requirement.holds(labels) for requirement in self.requirements)

    def only(self, key: str) -> str | None:
        """The one value that a label may have, if it is required to have one."""
        for requirement in self.requirements:
            values = requirement.values
            if requirement.key == key and not requirement.negative and values and len(values) == 1:
                return next(iter(values))
        return None


def parse(text: str) -> Selector:
    """Reads a selector; an empty one selects everything.

    Raises:
        NoSelector: it is none.
    """
    found: list[Requirement] = []
    position = 0
    while position < len(text.rstrip()):
        match = _REQUIREMENT.match(text, position)
        if match is None or (match[0].rstrip().endswith(",") and not text[match.end() :].strip()):
            raise NoSelector(f"no label selector: {text[:200]!r}")
        found.append(_requirement(match))
        position = match.end()
    return Selector(tuple(found))


def _requirement(match: re.Match[str]) -> Requirement:
    if match["absent"]:
        return Requirement(match["missing"], None, negative=True)
    if match["set"]:
        values = [_ONE.fullmatch(value) for value in match["values"].split(",")]
        wrong = next(
            (text for text, value in zip(match["values"].split(","), values, strict=True) if not value), None
        )
        if wrong is not None:
            raise NoSelector(f"no value of a label: {wrong[:200]!r}")
        return Requirement(
            match["key"], frozenset(v[1] for v in values if v), negative=match["set"] == "notin"
        )
    if match["operator"]:
        return Requirement(match["key"], frozenset((match["value"],)), negative=match["operator"] == "!=")
    return Requirement(match["key"], None, negative=False)
