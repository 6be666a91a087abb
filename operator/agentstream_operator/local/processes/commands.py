"""Translates a container of a pod template to a command: arguments, environment, working directory."""

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
"""Default seconds between SIGTERM and SIGKILL, as in Kubernetes."""

# `$$(NAME)` is the escaped form, which stays as `$(NAME)`
_REFERENCE = re.compile(r"\$(\$\([A-Za-z_][A-Za-z0-9_.-]*\))|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


@dataclass(frozen=True, slots=True)
class Command:
    """A command with its whole environment; `grace` is the seconds between SIGTERM and SIGKILL."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(hash=False, repr=False)
    binding: Path
    directory: Path
    grace: float

    @property
    def sources(self) -> frozenset[Path]:
        """The directories with its Python files: its own, those of its scripts, and those of PYTHONPATH."""
        scripts = [self.directory / argument for argument in self.arguments if argument.endswith(".py")]
        paths = [
            self.directory / path for path in self.environment.get("PYTHONPATH", "").split(os.pathsep) if path
        ]
        # a script may be a link to a file elsewhere
        folders = (self.directory, *paths, *(script.parent for script in scripts))
        return frozenset(path.resolve() for path in folders) | {script.resolve().parent for script in scripts}

    @property
    def problem(self) -> str | None:
        """Why the command cannot be started at present; None if it can."""
        if not self.directory.is_dir():
            return f"workingDir {self.directory} is not a directory"
        program = self.arguments[0]
        # a path is relative to the working directory
        where = str(self.directory / program) if "/" in program else program
        if shutil.which(where, path=self.environment.get("PATH")) is None:
            missing = "is not executable" if Path(where).is_file() else "does not exist"
            return f"command {program!r} {missing}"
        return None


def command_of(
    group: ConsumerGroup,
    binding: Path,
    folder: Path,
    surroundings: Mapping[str, str],
    *,
    verbose: bool = False,
) -> Command | None:
    """Builds the command of a group's consumers; None if its template has none.

    The folder of the manifest stands for the image's working directory. The agents inherit the surroundings,
    and log the traceback of every failed attempt if `verbose`.
    """
    template = group.spec.template
    if template is None:
        return None
    container = template.spec.containers[0]
    if not container.command:
        return None
    settings = {"AGENTSTREAM_BINDING": str(binding)}
    if verbose:
        settings["AGENTSTREAM_TRACEBACKS"] = "always"
    environment = _environment(container, settings, surroundings)
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
    """Replaces `$(NAME)` as Kubernetes does: unknown names are kept, and `$$(NAME)` becomes `$(NAME)`."""

    def value(found: re.Match[str]) -> str:
        escaped, name = found[1], found[2]
        return escaped or environment.get(name, found[0])

    return _REFERENCE.sub(value, text)


def _environment(
    container: Container, settings: Mapping[str, str], surroundings: Mapping[str, str]
) -> dict[str, str]:
    # `python` is the interpreter of this process, which has the SDK
    path = os.pathsep.join((str(Path(sys.executable).parent), surroundings.get("PATH", os.defpath)))
    environment = {
        # variables for another server or agent must not reach these
        **{name: value for name, value in surroundings.items() if not name.startswith("AGENTSTREAM_")},
        "PATH": path,
        "PYTHONUNBUFFERED": "1",
        **settings,
    }
    for variable in container.env:
        if variable.value is not None:
            environment[variable.name] = expand(variable.value, environment)
    return environment
