"""The pod template of a consumer: the fields that the operator reads; all others are kept unchanged.

The API server validates a pod template when the Deployment is created. No field has a default in the schema,
or the API server would write it into each template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import ConfigDict, Field

from .model import DnsLabel, Model

_KEPT = ConfigDict(extra="allow")

Argument = Annotated[str, Field(max_length=32_768)]
LabelValue = Annotated[str, Field(max_length=63)]
AnnotationValue = Annotated[str, Field(max_length=32_768)]


class EnvVar(Model):
    """An environment variable of a container."""

    model_config = _KEPT

    name: Annotated[str, Field(min_length=1, max_length=256)]
    """Name of the variable."""

    value: Annotated[str, Field(max_length=131_072)] | None = None
    """Its value; absent where valueFrom names another source."""


class Container(Model):
    """A container of the pod."""

    model_config = _KEPT

    name: DnsLabel
    """Name of the container."""

    image: Annotated[str, Field(max_length=1_024)] | None = None
    """Image to run."""

    command: tuple[Argument, ...] = Field(max_length=256, default_factory=tuple)
    """Entry point; that of the image if absent."""

    args: tuple[Argument, ...] = Field(max_length=256, default_factory=tuple)
    """Arguments of the entry point."""

    env: tuple[EnvVar, ...] = Field(max_length=256, default_factory=tuple)
    """Environment variables; the operator adds the variables of the SDK."""

    working_dir: Annotated[str, Field(max_length=4_096)] | None = None
    """Working directory."""


class PodSpec(Model):
    """The pod's specification."""

    model_config = _KEPT

    containers: Annotated[tuple[Container, ...], Field(min_length=1, max_length=64)]
    """Containers of the pod; the first one runs the agent."""


class PodMetadata(Model):
    """Labels and annotations of the pods."""

    labels: Mapping[str, LabelValue] = Field(max_length=64, default_factory=dict)
    """Labels of the pods."""

    annotations: Mapping[str, AnnotationValue] = Field(max_length=64, default_factory=dict)
    """Annotations of the pods."""


class PodTemplate(Model):
    """Pod template of the consumers."""

    metadata: PodMetadata = Field(default_factory=PodMetadata)
    """Labels and annotations of the pods."""

    spec: PodSpec
    """The pod's specification, as in a Deployment."""
