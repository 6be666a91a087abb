"""Writes the Grafana dashboards of the chart; `make generate` does it.

A dashboard is a page of panels, two in a row. Every query follows the variable of the data source; sums and
maxima over the operators' pods go on where one takes over from another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent / "agentstream/dashboards"
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_OF_STREAM: Final = 'namespace=~"$namespace",stream=~"$stream"'
_OF_GROUP: Final = f'{_OF_STREAM},group=~"$group"'
_BY_STREAM: Final = "namespace, stream"
_BY_GROUP: Final = "namespace, stream, group"
_OUTCOME: Final = f"{_BY_GROUP}, outcome"
_STREAM: Final = "{{namespace}}/{{stream}}"
_GROUP: Final = "{{namespace}}/{{group}}"

Query = tuple[str, str]
"""A PromQL expression, and the legend of its series."""

Panel = tuple[str, str, str, list[Query]]
"""Title, unit and description of a panel, and its queries."""


def _latest(metric: str, by: str, of: str) -> str:
    return f"max by ({by}) ({metric}{{{of}}})"


def _rate(metric: str, by: str, of: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{of}}}[$__rate_interval]))"


def _quantile(share: float, metric: str, by: str, of: str) -> str:
    buckets = _rate(f"{metric}_bucket", f"{by}, le", of)
    return f"histogram_quantile({share}, {buckets})"


def _failed(window: str, of: str) -> str:
    dead = f'increase(agentstream_group_settled_total{{{of},outcome="dead"}}[{window}])'
    return f"{dead} or increase(agentstream_group_lost_total{{{of}}}[{window}])"


def _delivered(by: str, of: str, window: str = "$__range") -> str:
    ended = f'increase(agentstream_group_settled_total{{{of},outcome=~"acked|dead"}}[{window}])'
    every = f"{ended} or increase(agentstream_group_lost_total{{{of}}}[{window}])"
    by_what = f" by ({by})" if by else ""
    return f"1 - sum{by_what} ({_failed(window, of)}) / sum{by_what} ({every})"


_NAMESPACE: Final = 'namespace=~"$namespace"'

OVERVIEW: Final[list[Panel]] = [
    (
        "Delivered",
        "percentunit",
        "Of the messages that ended in this time, the share that was handled.",
        [(_delivered("", _NAMESPACE), "all groups")],
    ),
    (
        "Ledger",
        "short",
        "What became of all messages since the groups began: every one is in one of the lines.",
        [(f"sum by (outcome) ({_latest('agentstream_group_ledger', _OUTCOME, _NAMESPACE)})", "{{outcome}}")],
    ),
    (
        "What is wrong",
        "short",
        "Conditions of resources that are not as they should be.",
        [
            (
                _latest(
                    "agentstream_condition",
                    "kind, namespace, name, reason",
                    f'{_NAMESPACE},type="Ready",status!="True"',
                ),
                "{{kind}} {{namespace}}/{{name}}: {{reason}}",
            )
        ],
    ),
    (
        "Added and handled",
        "cps",
        "Messages per second, of all groups together.",
        [
            (f"sum(rate(agentstream_group_added_total{{{_NAMESPACE}}}[$__rate_interval]))", "added"),
            (
                f"sum by (outcome) (rate(agentstream_group_settled_total{{{_NAMESPACE}}}[$__rate_interval]))",
                "{{outcome}}",
            ),
        ],
    ),
    (
        "Largest backlogs",
        "short",
        "Messages that are not settled.",
        [(f"topk(10, {_latest('agentstream_group_backlog', _BY_GROUP, _NAMESPACE)})", _GROUP)],
    ),
    (
        "Longest waits",
        "s",
        "Age of the oldest message that no consumer has.",
        [(f"topk(10, {_latest('agentstream_group_oldest_waiting_seconds', _BY_GROUP, _NAMESPACE)})", _GROUP)],
    ),
    (
        "Most dead letters",
        "short",
        "Dead letters that are kept.",
        [(f"topk(10, {_latest('agentstream_group_dead_letters', _BY_GROUP, _NAMESPACE)})", _GROUP)],
    ),
    (
        "Closed streams",
        "short",
        "1 while a stream refuses new messages.",
        [(f"1 - {_latest('agentstream_stream_admission_open', _BY_STREAM, _NAMESPACE)}", _STREAM)],
    ),
    (
        "Resources",
        "short",
        "By kind, and whether they are ready.",
        [
            (
                'max by (kind, status) (agentstream_resources{condition="Ready"})',
                "{{kind}}: Ready={{status}}",
            )
        ],
    ),
]

STREAM: Final[list[Panel]] = [
    (
        "Length, unsettled and limit",
        "short",
        "At the limit the stream does what onFull says.",
        [
            (_latest("agentstream_stream_length", _BY_STREAM, _OF_STREAM), f"{_STREAM} length"),
            (_latest("agentstream_stream_unsettled", _BY_STREAM, _OF_STREAM), f"{_STREAM} unsettled"),
            (_latest("agentstream_stream_limit", _BY_STREAM, _OF_STREAM), f"{_STREAM} limit"),
        ],
    ),
    (
        "Takes new messages",
        "short",
        "0 while they are refused.",
        [(_latest("agentstream_stream_admission_open", _BY_STREAM, _OF_STREAM), _STREAM)],
    ),
    (
        "History",
        "s",
        "Age of the oldest message: how far back a replay reaches.",
        [(_latest("agentstream_stream_history_seconds", _BY_STREAM, _OF_STREAM), _STREAM)],
    ),
    (
        "Trimmed too early",
        "short",
        "1 if history younger than minAge, or unsettled messages, were trimmed in the last minute.",
        [
            (_latest("agentstream_stream_history_shortened", _BY_STREAM, _OF_STREAM), f"{_STREAM} history"),
            (_latest("agentstream_stream_trimmed_unsettled", _BY_STREAM, _OF_STREAM), f"{_STREAM} unsettled"),
        ],
    ),
    (
        "Backlog by group",
        "short",
        "The group with the largest one holds the stream up.",
        [(_latest("agentstream_group_backlog", _BY_GROUP, _OF_STREAM), _GROUP)],
    ),
    (
        "Added",
        "cps",
        "Messages per second.",
        [(_latest("agentstream_group_arrival_rate", _BY_STREAM, _OF_STREAM), _STREAM)],
    ),
]

GROUP: Final[list[Panel]] = [
    (
        "Delivered",
        "percentunit",
        "Of the messages that ended in this time, the share that was handled.",
        [(_delivered(_BY_GROUP, _OF_GROUP), _GROUP)],
    ),
    (
        "Ledger",
        "short",
        "What became of all messages since the group began: every one is in one of the lines.",
        [(_latest("agentstream_group_ledger", _OUTCOME, _OF_GROUP), "{{namespace}}/{{group}} {{outcome}}")],
    ),
    (
        "Backlog",
        "short",
        "Messages that wait for a consumer, that one has, and that wait for another attempt.",
        [
            (_latest("agentstream_group_undelivered", _BY_GROUP, _OF_GROUP), f"{_GROUP} waiting"),
            (_latest("agentstream_group_pending", _BY_GROUP, _OF_GROUP), f"{_GROUP} in hand"),
            (_latest("agentstream_group_retrying", _BY_GROUP, _OF_GROUP), f"{_GROUP} to be retried"),
            (_latest("agentstream_group_delayed", _BY_GROUP, _OF_GROUP), f"{_GROUP} later"),
        ],
    ),
    (
        "Age",
        "s",
        "Of the oldest message of the backlog, and of the oldest that no consumer has.",
        [
            (_latest("agentstream_group_oldest_seconds", _BY_GROUP, _OF_GROUP), f"{_GROUP} oldest"),
            (_latest("agentstream_group_oldest_waiting_seconds", _BY_GROUP, _OF_GROUP), f"{_GROUP} waiting"),
        ],
    ),
    (
        "Settled",
        "cps",
        "Messages per second by how they ended, and failed attempts.",
        [
            (
                _rate("agentstream_group_settled_total", f"{_BY_GROUP}, outcome", _OF_GROUP),
                f"{_GROUP} {{{{outcome}}}}",
            ),
            (_rate("agentstream_group_retried_total", _BY_GROUP, _OF_GROUP), f"{_GROUP} attempts repeated"),
        ],
    ),
    (
        "Latency",
        "s",
        "From adding a message to its acknowledgement: half, 95 % and 99 % are faster.",
        [
            (
                _quantile(share, "agentstream_group_latency_seconds", _BY_GROUP, _OF_GROUP),
                f"{_GROUP} p{100 * share:g}",
            )
            for share in (0.5, 0.95, 0.99)
        ],
    ),
    (
        "Dead letters",
        "short",
        "Dead letters that are kept.",
        [(_latest("agentstream_group_dead_letters", _BY_GROUP, _OF_GROUP), _GROUP)],
    ),
    (
        "Lost",
        "short",
        "Messages that are neither settled nor on the server any more, since the operator started.",
        [(_latest("agentstream_group_lost_total", _BY_GROUP, _OF_GROUP), _GROUP)],
    ),
    (
        "Consumers",
        "short",
        "Pods that are ready, and that are wanted and missing; and the consumers that the server lists.",
        [
            (
                _latest("agentstream_group_consumers", f"{_BY_GROUP}, state", _OF_GROUP),
                f"{_GROUP} {{{{state}}}}",
            ),
            (
                _latest("agentstream_group_registered_consumers", _BY_GROUP, _OF_GROUP),
                f"{_GROUP} registered",
            ),
        ],
    ),
]

_RECONCILED: Final = "agentstream_reconcile_duration_seconds"

OPERATOR: Final[list[Panel]] = [
    ("Leads", "short", "1 for the pod that holds the Lease.", [("agentstream_leader", "{{pod}}")]),
    ("Redis answers", "short", "0 while it does not.", [("agentstream_redis_up", "{{pod}}")]),
    (
        "Queue",
        "short",
        "Keys that wait to be reconciled.",
        [("max(agentstream_queue_depth)", "waiting")],
    ),
    (
        "Oldest key of the queue",
        "s",
        "How late changes are applied.",
        [("max(agentstream_queue_oldest_seconds)", "age")],
    ),
    (
        "Reconciliations",
        "cps",
        "By kind and outcome.",
        [
            (
                f"sum by (kind, outcome) (rate({_RECONCILED}_count[$__rate_interval]))",
                "{{kind}} {{outcome}}",
            )
        ],
    ),
    (
        "Duration of reconciliations",
        "s",
        "95 % are faster.",
        [
            (
                f"histogram_quantile(0.95, sum by (kind, le) (rate({_RECONCILED}_bucket[$__rate_interval])))",
                "{{kind}}",
            )
        ],
    ),
    (
        "Requests to the API server",
        "reqps",
        "By code; 0: no response.",
        [("sum by (code) (rate(agentstream_api_requests_total[$__rate_interval]))", "{{code}}")],
    ),
    (
        "Round trips to Redis",
        "cps",
        "Batches of commands.",
        [("sum(rate(agentstream_redis_round_trips_total[$__rate_interval]))", "round trips")],
    ),
    (
        "Janitor",
        "cps",
        "What it did on all streams.",
        [("sum by (action) (rate(agentstream_janitor_total[$__rate_interval]))", "{{action}}")],
    ),
    (
        "Failures of background work",
        "cps",
        "Of single streams and groups: each stops no other.",
        [("sum by (loop) (rate(agentstream_background_failures_total[$__rate_interval]))", "{{loop}}")],
    ),
]

_OF_AGENT: Final = 'namespace=~"$namespace",agent=~"$agent"'
_AGENT: Final = "{{namespace}}/{{agent}}"

AGENTS: Final[list[Panel]] = [
    (
        "Sent",
        "cps",
        "Messages per second.",
        [(_rate("agentstream_client_send_seconds_count", "namespace, agent", _OF_AGENT), _AGENT)],
    ),
    (
        "Time to send",
        "s",
        "From the call to the server's reply; 95 % are faster.",
        [(_quantile(0.95, "agentstream_client_send_seconds", "namespace, agent", _OF_AGENT), _AGENT)],
    ),
    (
        "Settled",
        "cps",
        "Deliveries per second by how they ended.",
        [
            (
                _rate("agentstream_client_settled_total", "namespace, agent, outcome", _OF_AGENT),
                f"{_AGENT} {{{{outcome}}}}",
            )
        ],
    ),
    (
        "Time to handle",
        "s",
        "From handing a message out to settling it; 95 % are faster.",
        [(_quantile(0.95, "agentstream_client_handler_seconds", "namespace, agent", _OF_AGENT), _AGENT)],
    ),
    (
        "In hand",
        "short",
        "Messages with a lease.",
        [
            (
                f"sum by (namespace, agent, state) (agentstream_client_held{{{_OF_AGENT}}})",
                f"{_AGENT} {{{{state}}}}",
            )
        ],
    ),
]

PAGES: Final = {
    "overview": ("AgentStream / Overview", ("namespace",), OVERVIEW),
    "stream": ("AgentStream / Stream", ("namespace", "stream"), STREAM),
    "group": ("AgentStream / Group", ("namespace", "stream", "group"), GROUP),
    "operator": ("AgentStream / Operator", (), OPERATOR),
    "agents": ("AgentStream / Agents", ("namespace", "agent"), AGENTS),
}
"""Title, variables and panels of each dashboard, by its name."""


def dashboard(name: str) -> dict[str, Any]:
    """Builds a dashboard."""
    title, variables, panels = PAGES[name]
    return {
        "uid": f"agentstream-{name}",
        "title": title,
        "tags": ["agentstream"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_data_source(), *_variables(variables, agents=name == "agents")]},
        "panels": [_panel(number, *panel) for number, panel in enumerate(panels)],
    }


def _data_source() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _variables(names: tuple[str, ...], *, agents: bool) -> Iterator[dict[str, Any]]:
    """Variables that offer the values of a label, of what is chosen before."""
    chosen: list[str] = []
    metric = "agentstream_client_received_total" if agents else "agentstream_group_lag_known"
    for name in names:
        yield {
            "name": name,
            "type": "query",
            "datasource": _SOURCE,
            "query": f"label_values({metric}{{{','.join(chosen)}}}, {name})",
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "allValue": ".+",
            "current": {"text": ["All"], "value": ["$__all"]},
        }
        chosen.append(f'{name}=~"${name}"')


def _panel(number: int, title: str, unit: str, text: str, queries: list[Query]) -> dict[str, Any]:
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "description": text,
        "datasource": _SOURCE,
        "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "expr": expression,
                "legendFormat": legend,
                "datasource": _SOURCE,
            }
            for place, (expression, legend) in enumerate(queries)
        ],
    }


def text(name: str) -> str:
    """Returns a dashboard as its file has it."""
    return json.dumps(dashboard(name), indent=1) + "\n"


def main() -> None:
    """Writes the files."""
    HERE.mkdir(exist_ok=True)
    for name in PAGES:
        (HERE / f"{name}.json").write_text(text(name))


if __name__ == "__main__":
    main()
