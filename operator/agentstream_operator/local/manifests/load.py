"""Manifests from files and directories: the resources that they declare, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentstream_operator.local.manifests.documents import Document, Place, Unreadable, read_documents
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import GROUP, ResourceKey
from agentstream_operator.resources.parse import InvalidResource, parse_resource

SUFFIXES = frozenset({".yaml", ".yml", ".json"})


@dataclass(frozen=True, slots=True)
class DeclaredResource:
    """A resource and where it is declared."""

    resource: AgentStream | ConsumerGroup
    place: Place


@dataclass(frozen=True, slots=True)
class Manifests:
    """What files declare.

    Attributes:
        declared: the resources, in the order of files and of documents in them.
        problems: what is wrong, one line each, with the place.
        ignored: the kinds of other projects that occur, with the first place of each.
    """

    declared: Mapping[ResourceKey, DeclaredResource]
    problems: Sequence[str]
    ignored: Mapping[str, Place]


def load(paths: Iterable[Path]) -> Manifests:
    """Reads manifests: the files given, and those that lie directly in the directories given."""
    declared: dict[ResourceKey, DeclaredResource] = {}
    problems: list[str] = []
    ignored: dict[str, Place] = {}
    for file in _files(paths, problems):
        try:
            documents = read_documents(file)
        except Unreadable as error:
            problems.append(str(error))
            continue
        for document in (item for whole in documents for item in whole.items()):
            kind = _foreign_kind(document)
            if kind is not None:
                ignored.setdefault(kind, document.place)
            else:
                _declare(document, declared, problems)
    return Manifests(declared, problems, ignored)


def _files(paths: Iterable[Path], problems: list[str]) -> list[Path]:
    """The files, each once, in the order in which they are read."""
    files: dict[Path, Path] = {}
    for path in paths:
        try:
            found = [path]
            if path.is_dir():
                found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
                if not found:
                    problems.append(f"{path}: holds no manifests (.yaml, .yml or .json files)")
            elif not path.exists():
                problems.append(f"{path}: does not exist")
                continue
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror}")
            continue
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def _foreign_kind(document: Document) -> str | None:
    """The kind of a well-formed object that is none of ours, such as a Deployment."""
    content = document.content
    if not isinstance(content, Mapping):
        return None
    version, kind = content.get("apiVersion"), content.get("kind")
    if not isinstance(version, str) or not isinstance(kind, str) or version.split("/")[0] == GROUP:
        return None
    # a resource of ours with a mistyped group is a mistake, not a foreign object
    return None if kind in {"AgentStream", "ConsumerGroup"} else kind


def _declare(document: Document, declared: dict[ResourceKey, DeclaredResource], problems: list[str]) -> None:
    try:
        resource = parse_resource(document.content)
    except InvalidResource as error:
        for problem in error.problems:
            path, _, _ = problem.partition(": ")
            problems.append(f"{document.at(path)}: {error.subject}: {problem}")
        return
    first = declared.get(resource.key)
    if first is not None:
        problems.append(f"{document.place}: {resource.key} is declared twice, first at {first.place}")
        return
    declared[resource.key] = DeclaredResource(resource, document.place)
