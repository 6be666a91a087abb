"""Registers the metrics of a process's agents with Prometheus; needs the extra `agentstream[metrics]`."""

from agentstream.telemetry.metrics import register

__all__ = ["register"]
