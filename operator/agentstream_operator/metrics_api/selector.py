"""Parses and matches label selectors of the Kubernetes API. No input or output.

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
_ONE = re.compile(_VALUE)


class InvalidSelectorError(ValueError):
    """A text is not a label selector."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A requirement on one label: to have one of the values (any if None), or, if negative, not to."""

    key: str
    values: frozenset[str] | None
    negative: bool

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Tells whether labels meet the requirement."""
        value = labels.get(self.key)
        matches = value is not None and (self.values is None or value in self.values)
        return matches is not self.negative


@dataclass(frozen=True, slots=True)
class Selector:
    """Requirements that must all hold."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tells whether labels meet all requirements."""
        return all(requirement.holds(labels) for requirement in self.requirements)

    def only(self, key: str) -> str | None:
        """Returns the value that the label must have, if only one is allowed."""
        for requirement in self.requirements:
            values = requirement.values
            if requirement.key == key and not requirement.negative and values and len(values) == 1:
                return next(iter(values))
        return None


def parse(text: str) -> Selector:
    """Parses a label selector; an empty one selects everything.

    Raises:
        InvalidSelectorError: the text is not a label selector.
    """
    found: list[Requirement] = []
    position = 0
    while position < len(text.rstrip()):
        match = _REQUIREMENT.match(text, position)
        if match is None or (match[0].rstrip().endswith(",") and not text[match.end() :].strip()):
            raise InvalidSelectorError(f"not a label selector: {text[:200]!r}")
        found.append(_requirement(match))
        position = match.end()
    return Selector(tuple(found))


def _requirement(match: re.Match[str]) -> Requirement:
    if match["absent"]:
        return Requirement(match["missing"], None, negative=True)
    if match["set"]:
        values = [value.strip() for value in match["values"].split(",")]
        if (wrong := next((value for value in values if not _ONE.fullmatch(value)), None)) is not None:
            raise InvalidSelectorError(f"not a label value: {wrong[:200]!r}")
        return Requirement(match["key"], frozenset(values), negative=match["set"] == "notin")
    if match["operator"]:
        return Requirement(match["key"], frozenset((match["value"],)), negative=match["operator"] == "!=")
    return Requirement(match["key"], None, negative=False)
