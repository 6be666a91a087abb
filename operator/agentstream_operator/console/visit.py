"""What a page is made from: the API in the visitor's name, and what the address asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agentstream_operator.console.history import History
from agentstream_operator.console.inner import InnerApi


@dataclass(frozen=True, slots=True, eq=False)
class Visit:
    """A request for a page.

    Attributes:
        api: asks as the visitor.
        places: names in the path.
        query: parameters of the query, or fields of a form; each may have several values.
        history: numbers of groups over time.
    """

    api: InnerApi
    places: Mapping[str, str]
    query: Mapping[str, Sequence[str]]
    history: History = field(default_factory=History)

    def asked(self, name: str) -> str | None:
        """Returns a parameter; None if it is absent or empty."""
        values = self.query.get(name, ())
        return values[0].strip() or None if values else None

    def several(self, name: str) -> list[str]:
        """Returns all values of a parameter that are not empty; commas separate, too."""
        return [
            part.strip() for value in self.query.get(name, ()) for part in value.split(",") if part.strip()
        ]
