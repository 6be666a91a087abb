"""The chart's alerts, by promtool: each fires on its story, and none does while all is well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.prometheus import chart_rules, promtool

HERE = Path(__file__).parent
STORIES = sorted(HERE.glob("*.yaml"))


def expected(story: Path) -> Iterator[tuple[str, bool]]:
    """Each alert that a story looks for, and whether it has to fire."""
    for test in yaml.safe_load(story.read_text())["tests"]:
        for look in test["alert_rule_test"]:
            yield look["alertname"], bool(look["exp_alerts"])


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.stem)
def test_alerts_fire_when_they_should(story: Path, tmp_path: Path) -> None:
    spec = chart_rules()
    for rule in spec["groups"][0]["rules"]:
        # what they say is for people: promtool would compare it letter for letter
        del rule["annotations"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    (tmp_path / story.name).write_text(story.read_text())
    promtool("test", "rules", tmp_path / story.name)


def test_every_alert_has_a_story_in_which_it_fires_and_is_silent_when_all_is_well() -> None:
    fires, silent = Counter[str](), Counter[str]()
    for story in STORIES:
        for name, does in expected(story):
            (fires if does else silent)[name] += 1
    names = {rule["alert"] for rule in chart_rules()["groups"][0]["rules"]}
    assert fires.keys() == names
    assert silent.keys() >= names - {"AgentStreamExternalMetricsFailing"}


@pytest.mark.parametrize(
    "settings", [{}, {"latency": {"seconds": 30, "groups": 'a"b\\.c'}, "deadLetters": 7}]
)
def test_prometheus_takes_rules_and_their_texts(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(chart_rules(**settings)))
    assert "SUCCESS" in promtool("check", "rules", "--lint-fatal", tmp_path / "rules.yaml")
