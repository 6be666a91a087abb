"""The quickstart's modules are found as by its agents: beside each other."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "examples" / "quickstart"))
