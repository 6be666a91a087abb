"""Renders the reference page of conditions and reasons, so that it cannot differ from the code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .reasons import CONDITIONS, REASONS

_HEAD = """\
# Conditions and reasons

<!-- Generated from resources/reasons.py by `make generate`; do not edit. -->

Every AgentStream and ConsumerGroup reports its state as conditions (`kubectl describe`, or
`kubectl wait --for=condition=Ready`). A condition has a status (`True`, `False`, or `Unknown`) and a reason;
events and metrics use the same reasons. `lastTransitionTime` moves only when the status does.
"""


def conditions_page() -> str:
    """The page as Markdown: one table of the conditions, one of the reasons in alphabetical order."""
    conditions = [(f"`{kind}`", doc.meaning, f"`{doc.healthy}`") for kind, doc in CONDITIONS.items()]
    reasons = sorted((f"`{reason}`", doc.meaning, doc.action) for reason, doc in REASONS.items())
    return "\n".join(
        [
            _HEAD,
            "## Conditions\n",
            *_table(("Condition", "What it says", "When all is well"), conditions),
            "",
            "## Reasons\n",
            *_table(("Reason", "What it means", "What to do"), reasons),
            "",
        ]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
