"""How many examples a property test tries: few ordinarily, else what `AGENTSTREAM_EXAMPLES` says.

`AGENTSTREAM_EXAMPLES=10000 pytest tests/functions/test_hostile.py` tries ten thousand of each property.
"""

from __future__ import annotations

import os

from hypothesis import settings


def examples(ordinarily: int) -> int:
    """The number of examples to try."""
    return int(os.environ.get("AGENTSTREAM_EXAMPLES", ordinarily))


def trying(ordinarily: int) -> settings:
    """Settings for a property that tries this many examples ordinarily; a decorator."""
    return settings(max_examples=examples(ordinarily))
