"""Reads YAML documents with the line of each field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from agentstream_operator.resources.parse import MAX_DEPTH

_Base: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_MOST_VALUES = 1_000_000
_PART = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")


class _Loader(_Base):  # type: ignore[misc]
    """Loads timestamps as text, as the API server does."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in _Base.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A line of a manifest file."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class UnreadableFileError(Exception):
    """A manifest file cannot be read or parsed; the message begins with file and line."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document: its first line, and its content as plain values and as YAML nodes, which have lines."""

    place: SourceLine
    content: Any
    node: yaml.Node = field(repr=False)

    def at(self, path: str) -> SourceLine:
        """Returns the line of a field such as `spec.items[0].name`, or of the last part of it that exists."""
        node, line = self.node, self.place.line
        for name, index in _PART.findall(path):
            child = _child(node, name, index)
            if child is None:
                break
            key, node = child
            line = key.start_mark.line + 1
        return SourceLine(self.place.file, line)

    def items(self) -> Iterator[Document]:
        """Yields the items of a `kind: List`; otherwise the document itself."""
        if not isinstance(self.content, Mapping) or self.content.get("kind") != "List":
            yield self
            return
        found = _child(self.node, "items", "")
        if found is not None and isinstance(found[1], yaml.SequenceNode):
            for content, node in zip(self.content["items"], found[1].value, strict=True):
                yield from Document(
                    SourceLine(self.place.file, node.start_mark.line + 1), content, node
                ).items()


def read_documents(file: Path, data: bytes | None = None) -> list[Document]:
    """Reads the documents of a YAML or JSON file, or of `data` in its place, without empty ones.

    Raises:
        UnreadableFileError: the file cannot be read, is not YAML, or has a field twice.
    """
    try:
        text = (file.read_bytes() if data is None else data).decode()
    except OSError as error:
        raise UnreadableFileError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UnreadableFileError(f"{file}: is not UTF-8 text: {error}") from error
    documents = []
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            place = SourceLine(file, node.start_mark.line + 1)
            _refuse(node, file)
            content = loader.construct_document(node)
            if content is not None:
                documents.append(Document(place, content, node))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = SourceLine(file, mark.line + 1) if mark else file
        raise UnreadableFileError(f"{where}: is not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UnreadableFileError(f"{file}: is not valid YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()
    return documents


def _child(node: yaml.Node, name: str, index: str) -> tuple[yaml.Node, yaml.Node] | None:
    if name and isinstance(node, yaml.MappingNode):
        # the last of duplicates counts, as in the content
        return next(((key, value) for key, value in reversed(node.value) if key.value == name), None)
    if index and isinstance(node, yaml.SequenceNode) and int(index) < len(node.value):
        item = node.value[int(index)]
        return item, item
    return None


def _refuse(node: yaml.Node, file: Path) -> None:
    """Refuses duplicate fields, of which YAML would silently drop one, and what could not be worked with.

    That is a node that aliases multiply to more than `_MOST_VALUES`, that contains itself or is nested too
    deeply.
    """
    sizes: dict[int, int] = {}

    def size(current: yaml.Node, depth: int) -> int:
        """Returns the number of values in a node, with aliases replaced by what they stand for."""
        if depth > MAX_DEPTH:
            text = f"is nested more than {MAX_DEPTH} levels deep, or contains itself by an alias"
            raise UnreadableFileError(f"{SourceLine(file, current.start_mark.line + 1)}: {text}")
        # a node that is on the way is counted again, down to the limit of the depth
        if id(current) in sizes:
            return sizes[id(current)]
        children: list[yaml.Node] = []
        if isinstance(current, yaml.SequenceNode):
            children = current.value
        elif isinstance(current, yaml.MappingNode):
            _refuse_repeated(current, file)
            children = [value for _, value in current.value]
        total = 1 + sum(size(child, depth + 1) for child in children)
        if total > _MOST_VALUES:
            text = f"has more than {_MOST_VALUES:,} values, with aliases replaced by what they stand for"
            raise UnreadableFileError(f"{SourceLine(file, current.start_mark.line + 1)}: {text}")
        sizes[id(current)] = total
        return total

    size(node, 1)


def _refuse_repeated(node: yaml.MappingNode, file: Path) -> None:
    lines: dict[object, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            continue
        if key.value in lines:
            raise UnreadableFileError(
                f"{SourceLine(file, key.start_mark.line + 1)}: {key.value} is set twice,"
                f" first on line {lines[key.value]}"
            )
        lines[key.value] = key.start_mark.line + 1
