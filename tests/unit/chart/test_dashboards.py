"""The chart's dashboards: generated, complete, and of metrics that exist."""

from __future__ import annotations

import importlib.util
import json
import re

import pytest

from support.helm import CHART, EMBEDDED, ROOT
from unit.chart.test_monitoring import exposed

FILES = sorted((CHART / "dashboards").glob("*.json"))


def builder():
    spec = importlib.util.spec_from_file_location("dashboards", ROOT / "charts/dashboards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_builder_writes():
    made = builder()
    assert {path.stem for path in FILES} == set(made.PAGES)
    for path in FILES:
        assert path.read_text() == made.text(path.stem), "run `make generate`"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_dashboard_is_one_for_grafana(path):
    page = json.loads(path.read_text())
    panels, variables = page["panels"], {one["name"] for one in page["templating"]["list"]}
    places = [(one["gridPos"]["x"], one["gridPos"]["y"]) for one in panels]

    assert page["uid"] == f"agentstream-{path.stem}"
    assert len({one["id"] for one in panels}) == len(set(places)) == len(panels)
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(page))) - {"__rate_interval", "__range", "__all"}
    assert used <= variables
    for panel in panels:
        assert panel["description"]
        assert panel["targets"]


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem != "agents"], ids=lambda path: path.stem
)
def test_queries_ask_for_metrics_and_labels_that_exist(path):
    known = exposed() | {
        "agentstream_janitor_total": {"action"},
        "agentstream_background_failures_total": {"loop"},
    }
    for panel in json.loads(path.read_text())["panels"]:
        for target in panel["targets"]:
            asked = re.findall(r"(agentstream_\w+)(?:\{([^}]*)\})?", target["expr"])
            assert asked
            for metric, matchers in asked:
                assert set(re.findall(r"(\w+)(?:!?=|=~)", matchers)) <= known[metric], target["expr"]


def test_they_come_if_asked_for(helm):
    assert not [one for one in helm.render(EMBEDDED).names("ConfigMap") if "dashboard" in one]
    settings = {"enabled": True, "labels": {"team": "a"}, "annotations": {"grafana_folder": "AgentStream"}}
    rendered = helm.render({**EMBEDDED, "dashboards": settings})
    for path in FILES:
        found = rendered.one("ConfigMap", f"agentstream-dashboard-{path.stem}", "agentstream-system")
        assert found["metadata"]["labels"].items() >= {"grafana_dashboard": "1", "team": "a"}.items()
        assert found["metadata"]["annotations"] == {"grafana_folder": "AgentStream"}
        ((name, text),) = found["data"].items()
        assert name == f"agentstream-{path.stem}.json"
        assert json.loads(text) == json.loads(path.read_text())
