"""Loads the resources that manifest files declare, with all mistakes in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agentstream_operator.local.manifests.documents import (
    Document,
    SourceLine,
    UnreadableFileError,
    read_documents,
)
from agentstream_operator.resources.meta import GROUP, ResourceKey
from agentstream_operator.resources.parse import InvalidResource, StreamOrGroup, parse_resource
from agentstream_operator.resources.streamreplay import StreamReplay

STDIN = Path("-")
SUFFIXES = frozenset({".yaml", ".yml", ".json"})


@dataclass(slots=True)
class Manifests:
    """The contents of manifest files.

    Attributes:
        declared: streams and groups.
        replays: what is carried out once, and not kept in effect.
        problems: mistakes, one line each, beginning with file and line.
        ignored: kinds that are not AgentStream's, with the first line of each.
        documents: where each resource is declared.
    """

    declared: dict[ResourceKey, StreamOrGroup] = field(default_factory=dict)
    replays: dict[ResourceKey, StreamReplay] = field(default_factory=dict)
    lines: dict[ResourceKey, SourceLine] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    ignored: dict[str, SourceLine] = field(default_factory=dict)
    documents: dict[ResourceKey, Document] = field(default_factory=dict)

    def at(self, key: ResourceKey, path: str) -> SourceLine:
        """Returns the line of a field of a resource, or of the last part of it that is there."""
        return self.documents[key].at(path)

    def add(self, document: Document) -> None:
        """Adds what a document declares, or what is wrong with it."""
        kind = _foreign_kind(document)
        if kind is not None:
            self.ignored.setdefault(kind, document.place)
            return
        try:
            resource = parse_resource(document.content)
        except InvalidResource as error:
            for problem in error.problems:
                path, _, _ = problem.partition(": ")
                self.problems.append(f"{document.at(path)}: {error.subject}: {problem}")
            return
        key = resource.key
        if key in self.lines:
            self.problems.append(f"{document.place}: {key} is declared twice, first at {self.lines[key]}")
            return
        if isinstance(resource, StreamReplay):
            self.replays[key] = resource
        else:
            self.declared[key] = resource
        self.lines[key], self.documents[key] = document.place, document


def load_manifests(paths: Iterable[Path], stdin: bytes | None = None) -> Manifests:
    """Loads the given files, and the manifest files directly inside the given directories.

    With `stdin`, the path `-` means this text, from standard input.
    """
    manifests = Manifests()
    given = [path for path in paths if stdin is None or path != STDIN]
    files: dict[Path, bytes | None] = dict.fromkeys(_files(given, manifests.problems))
    if stdin is not None:
        files[STDIN] = stdin
    for file, data in files.items():
        try:
            documents = read_documents(file, data)
        except UnreadableFileError as error:
            manifests.problems.append(str(error))
            continue
        if not documents:
            manifests.problems.append(f"{file}: is empty")
        for document in (item for whole in documents for item in whole.items()):
            manifests.add(document)
    return manifests


def _files(paths: Iterable[Path], problems: list[str]) -> list[Path]:
    """Lists the files, each once, in the order in which they are read."""
    files: dict[Path, Path] = {}
    for path in paths:
        try:
            found = [path]
            if path.is_dir():
                found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
                if not found:
                    problems.append(f"{path}: contains no manifests (.yaml, .yml or .json files)")
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
    """Returns the kind of an object of another API group, such as a Deployment."""
    content = document.content
    if not isinstance(content, Mapping):
        return None
    version, kind = content.get("apiVersion"), content.get("kind")
    if not isinstance(version, str) or not isinstance(kind, str) or version.split("/")[0] == GROUP:
        return None
    # one of our kinds with a mistyped group is a mistake
    return None if kind in {"AgentStream", "ConsumerGroup", "StreamReplay"} else kind
