"""Where the agents read and write; the environment may say otherwise."""

from __future__ import annotations

import os
from pathlib import Path

_PROJECT = Path(__file__).resolve().parent.parent.parent
_OUTPUT = Path(os.environ.get("QUICKSTART_OUTPUT") or _PROJECT).resolve()

ROOT = Path(os.environ.get("QUICKSTART_ROOT") or _PROJECT).resolve()
"""The directory whose files are read."""

REPORT = _OUTPUT / "report.md"
"""What is left at the end."""

JOURNAL = _OUTPUT / ".agentstream" / "quickstart" / "run.jsonl"
"""What the reporter knows of the newest run."""
