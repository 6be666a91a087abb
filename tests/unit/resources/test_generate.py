"""What is generated is what lies in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from agentstream_operator.resources.crd import KINDS, crd
from agentstream_operator.resources.generate import conditions_page, documents, drifted, main
from agentstream_operator.resources.status import ConditionReason, ConditionType

ROOT = Path(__file__).parents[3]


def test_the_repository_holds_what_would_be_generated():
    assert drifted(ROOT) == [], "run `make generate`"


def test_writing_makes_a_check_pass_and_a_change_makes_it_fail(tmp_path, capsys):
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--check", "--root", str(tmp_path)]) == 0
    capsys.readouterr()
    (tmp_path / "docs/reference/conditions.md").write_text("edited")
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert (
        capsys.readouterr().err
        == "docs/reference/conditions.md differs from the models; run `make generate`\n"
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
def test_the_yaml_is_the_crd_without_anchors(kind):
    text = documents()[f"crds/{kind.name}.yaml"]
    assert yaml.safe_load(text) == crd(kind)
    assert "&id" not in text
    assert documents()[f"charts/agentstream/files/crds/{kind.name}.yaml"] == text


def test_the_page_has_a_row_for_every_word():
    lines = conditions_page().splitlines()
    for word in (*ConditionType, *ConditionReason):
        assert any(line.startswith(f"| `{word}` |") for line in lines)
    assert all(line.count("|") == 4 for line in lines if line.startswith("|"))
