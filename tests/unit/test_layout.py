"""What must be so in the tree itself."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_operator_folder_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_no_source_file_is_too_long_to_be_one_thing() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("sdk", "operator")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long
