"""What a command works with: the API that its options name, opened when it is first used, and the output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Self, TypeVar

from agentstream_operator.commands.failure import BAD_INPUT, CommandFailed
from agentstream_operator.commands.options import ApiOptions, ApiTarget

if TYPE_CHECKING:
    from agentstream_operator.commands.client import QueueClient
    from agentstream_operator.commands.output import Printer

Shown = TypeVar("Shown")


class Session:
    """A run of a command. All that it needs is imported and opened when it is first asked for."""

    def __init__(self, options: ApiOptions, output: str = "table", *, watch: bool = False) -> None:
        self.options = options
        self.output = output
        self.watch = watch
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self.options.namespace is not None and self.options.all_namespaces:
            raise CommandFailed("--namespace and --all-namespaces exclude each other", code=BAD_INPUT)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @cached_property
    def target(self) -> ApiTarget:
        """The API that the options name; a `CommandFailed` says why there is none."""
        from agentstream_operator.commands.target import find

        return self._open.enter_context(find(self.options))

    @cached_property
    def api(self) -> QueueClient:
        """Asks the API."""
        from agentstream_operator.commands.client import QueueClient

        return self._open.enter_context(QueueClient(self.target))

    @cached_property
    def printer(self) -> Printer:
        """Prints to standard output in the format that was asked for."""
        import sys

        from agentstream_operator.commands.output import Printer

        return Printer(sys.stdout, self.output)

    @property
    def namespace(self) -> str | None:
        """The namespace that is meant; None: all."""
        if self.options.all_namespaces:
            return None
        return self.options.namespace or self.target.namespace

    def shown(self, look: Callable[[], Shown], show: Callable[[Printer, Shown], None]) -> None:
        """Shows what `look` gets, once or, with `--watch`, until Ctrl-C."""
        if self.watch:
            self.printer.watch(look, show)
        else:
            show(self.printer, look())

    def group(self, name: str) -> tuple[str, str]:
        """Finds a group: `NAME`, in the namespace that is meant, or `NAMESPACE/NAME`.

        Returns:
            Its namespace and name.

        Raises:
            CommandFailed: where all namespaces are meant, there is none or more than one of this name.
        """
        return self._find(name, "groups")

    def stream(self, name: str) -> tuple[str, str]:
        """Finds a stream as `group` finds a group."""
        return self._find(name, "streams")

    def _find(self, name: str, kind: Literal["groups", "streams"]) -> tuple[str, str]:
        namespace, slash, rest = name.partition("/")
        if slash:
            return namespace, rest
        if self.namespace is not None:
            return self.namespace, name
        from agentstream_operator.queue_api.documents import LagAnswer

        found = self.api.get("/queue/lag", LagAnswer)
        all_of_them = found.groups if kind == "groups" else found.streams
        named = [each.namespace for each in all_of_them if each.name == name]
        match named:
            case [one]:
                return one, name
            case []:
                raise CommandFailed(
                    f"there is no {kind.removesuffix('s')} {name}: `agentstream lag -A` lists all"
                )
        where = ", ".join(sorted(named))
        raise CommandFailed(f"{name} is in several namespaces: say which with -n ({where})", code=BAD_INPUT)
