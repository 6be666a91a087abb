"""Writes the generated files: `python -m agentstream_operator.resources.generate [--check]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from .crd import KINDS, crd
from .reasons import ConditionReason, ConditionType

_HEAD = "# Generated from operator/agentstream_operator/resources by `make generate`; do not edit.\n"

_PAGE_HEAD = """\
# Conditions and reasons

<!-- Generated from resources/reasons.py by `make generate`; do not edit. -->

Every AgentStream, ConsumerGroup and StreamReplay reports its state as conditions (`kubectl describe`, or
`kubectl wait --for=condition=Ready`). A condition has a status (`True`, `False`, or `Unknown`) and a reason;
events and metrics use the same reasons. `lastTransitionTime` moves only when the status does.
"""


def documents() -> dict[str, str]:
    """Returns the generated files: path from the repository's root -> text."""
    definitions = {kind.name: _HEAD + _to_yaml(crd(kind)) for kind in KINDS}
    files = {
        # the chart reads its copies as files, so that braces in them are no templates
        f"{folder}/{name}.yaml": text
        for folder in ("crds", "charts/agentstream/files/crds")
        for name, text in definitions.items()
    }
    files["docs/reference/conditions.md"] = conditions_page()
    return files


def conditions_page() -> str:
    """Renders the reference page of conditions and reasons."""
    conditions = [(f"`{kind}`", kind.meaning, f"`{kind.healthy}`") for kind in ConditionType]
    reasons = sorted((f"`{reason}`", reason.meaning, reason.action) for reason in ConditionReason)
    return "\n".join(
        [
            _PAGE_HEAD,
            "## Conditions\n",
            *_table(("Condition", "Meaning", "Healthy"), conditions),
            "",
            "## Reasons\n",
            *_table(("Reason", "Meaning", "Action"), reasons),
            "",
        ]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def drifted(root: Path) -> list[str]:
    """Returns the generated files that are missing under a root, or out of date."""
    return [
        path
        for path, text in documents().items()
        if not (root / path).is_file() or (root / path).read_text(encoding="utf-8") != text
    ]


def write(root: Path) -> None:
    """Writes the generated files under this root."""
    for path, text in documents().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the files, or with `--check` compares them. Returns the exit code: 1 if a file differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file differs")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository's root (default: .)")
    options = parser.parse_args(arguments)
    if not options.check:
        write(options.root)
        return 0
    differing = drifted(options.root)
    for path in differing:
        sys.stderr.write(f"{path} differs from the models; run `make generate`\n")
    return 1 if differing else 0


class _Dumper(yaml.SafeDumper):
    """Writes equal parts without anchors, which are hard to read in a manifest."""

    def ignore_aliases(self, data: Any) -> bool:
        """Returns True: no anchors."""
        del data
        return True


def _to_yaml(document: dict[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


if __name__ == "__main__":
    sys.exit(main())
