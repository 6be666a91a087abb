"""What a container of a pod template means on this machine: program, arguments, directory, environment."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.template import Container

_KILL_AFTER = 30.0
"""Seconds between SIGTERM and SIGKILL where the template does not say, as in Kubernetes."""

# `$$(NAME)` is the escaped form, which stays as `$(NAME)`
_REFERENCE = re.compile(r"\$(\$\([A-Za-z_][A-Za-z0-9_.-]*\))|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


@dataclass(frozen=True, slots=True)
class Command:
    """A program as it is to run.

    Attributes:
        arguments: the program and its arguments.
        environment: the whole environment; never holds a password.
        binding: how its agent reaches the server.
        directory: where it starts.
        grace: seconds that it gets to end after SIGTERM.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(hash=False, repr=False)
    binding: Path
    directory: Path
    grace: float

    @property
    def problem(self) -> str | None:
        """Why it cannot be started at present; None if it can."""
        if not self.directory.is_dir():
            return f"workingDir {self.directory} is not a directory"
        program = self.arguments[0]
        # a path is looked up where the program will start
        where = str(self.directory / program) if "/" in program else program
        if shutil.which(where, path=self.environment.get("PATH")) is None:
            missing = "is not executable" if Path(where).is_file() else "does not exist"
            return f"command {program!r} {missing}"
        return None


def command_of(
    group: ConsumerGroup, binding: Path, folder: Path, surroundings: Mapping[str, str]
) -> Command | None:
    """What the consumers of a group run; None if its template names no command.

    Args:
        group: a group with a template.
        binding: directory of the agent's binding.
        folder: where the group's manifest is; stands for the working directory of the image.
        surroundings: our own environment, which the agents inherit.
    """
    template = group.spec.template
    if template is None:
        return None
    container = template.spec.containers[0]
    if not container.command:
        return None
    environment = _environment(container, binding, surroundings)
    arguments = tuple(expand(argument, environment) for argument in (*container.command, *container.args))
    seconds = (template.spec.model_extra or {}).get("terminationGracePeriodSeconds")
    grace = float(seconds) if isinstance(seconds, int | float) else _KILL_AFTER
    return Command(
        arguments=arguments,
        environment=environment,
        binding=binding,
        directory=(folder / (container.working_dir or ".")).absolute(),
        grace=max(grace, group.spec.delivery.lease.seconds),
    )


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Replaces `$(NAME)` as Kubernetes does: unknown names stay as they are, and `$$(NAME)` is `$(NAME)`."""

    def value(found: re.Match[str]) -> str:
        escaped, name = found[1], found[2]
        return escaped or environment.get(name, found[0])

    return _REFERENCE.sub(value, text)


def _environment(container: Container, binding: Path, surroundings: Mapping[str, str]) -> dict[str, str]:
    # `python` is to be the interpreter that runs us, with the SDK beside it
    path = os.pathsep.join((str(Path(sys.executable).parent), surroundings.get("PATH", os.defpath)))
    environment = {
        # what points at another server, or another agent, is not for these
        **{name: value for name, value in surroundings.items() if not name.startswith("AGENTSTREAM_")},
        "PATH": path,
        "PYTHONUNBUFFERED": "1",
        "AGENTSTREAM_BINDING": str(binding),
    }
    for variable in container.env:
        if variable.value is not None:
            environment[variable.name] = expand(variable.value, environment)
    return environment
