"""Declares commands that ask the HTTP API: their common options, and how their errors are printed.

Modules with commands are imported for `--help`, too: they import nothing at the top but this module, `typer`,
`session`, `failure` and the standard library.
"""

from __future__ import annotations

import errno
import inspect
import io
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Concatenate, Literal, ParamSpec

import typer

from agentstream.printable import printable
from agentstream_operator.commands.completion import contexts, namespaces
from agentstream_operator.commands.failure import BROKEN_PIPE, INTERRUPTED, NOT_SO, CommandFailed
from agentstream_operator.commands.options import ApiOptions
from agentstream_operator.commands.session import Session

P = ParamSpec("P")

Format = Literal["table", "wide", "json", "yaml"]

_Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        metavar="NAMESPACE",
        help="Namespace. Default: that of the context; all of them in the folder of `agentstream dev`.",
        autocompletion=namespaces,
    ),
]
_AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces.")]
_Output = Annotated[Format, typer.Option("--output", "-o", help="How to show it.")]
_Watch = Annotated[
    bool, typer.Option("--watch", "-w", help="Go on showing it: anew on a terminal, what changed elsewhere.")
]
_Context = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Context of the kubeconfig.", autocompletion=contexts),
]
_Kubeconfig = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The kubeconfig. Default: as kubectl.", dir_okay=False)
]
_ApiNamespace = Annotated[
    str | None,
    typer.Option(
        metavar="NAMESPACE",
        envvar="AGENTSTREAM_API_NAMESPACE",
        help="Namespace of the queue server. Default: agentstream-system.",
    ),
]
_Api = Annotated[
    str | None,
    typer.Option(
        metavar="URL", envvar="AGENTSTREAM_API", help="Address of the HTTP API, instead of a kubeconfig."
    ),
]
_TokenFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        envvar="AGENTSTREAM_TOKEN_FILE",
        help="File with the bearer token for --api.",
        dir_okay=False,
    ),
]

# name of a parameter, its type, its default
_COMMON: dict[str, tuple[Any, Any]] = {
    "namespace": (_Namespace, None),
    "all_namespaces": (_AllNamespaces, False),
    "output": (_Output, "table"),
    "watch": (_Watch, False),
    "context": (_Context, None),
    "kubeconfig": (_Kubeconfig, None),
    "api_namespace": (_ApiNamespace, None),
    "api": (_Api, None),
    "token_file": (_TokenFile, None),
}
_WHERE = ("namespace", "all_namespaces", "context", "kubeconfig", "api_namespace", "api", "token_file")


def command(
    app: typer.Typer, name: str | None = None, *, without: tuple[Literal["output", "watch"], ...] = ()
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[Concatenate[Session, P], None]]:
    """Declares a function as a command of `app`; what it gets first is the session.

    The options that all commands have come after its own: where the API is, the namespace, `--output` and
    `--watch`, but for those `without`. What it raises as `CommandFailed` is printed as lines, Ctrl-C ends it
    quietly, and so does a reader that goes away.

    Args:
        app: takes the command.
        name: of the command; that of the function if absent.
        without: common options that make no sense for it.
    """

    def declare(function: Callable[Concatenate[Session, P], None]) -> Callable[Concatenate[Session, P], None]:
        app.command(name)(_runner(function, without))
        return function

    return declare


def callback(
    app: typer.Typer,
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[Concatenate[Session, P], None]]:
    """Declares what a group of commands does by itself, as `command` does for a command."""

    def declare(function: Callable[Concatenate[Session, P], None]) -> Callable[Concatenate[Session, P], None]:
        app.callback(invoke_without_command=True)(_runner(function, ()))
        return function

    return declare


def _runner(
    function: Callable[Concatenate[Session, P], None], without: Collection[str]
) -> Callable[..., None]:
    """What typer calls: it has the options of the function and the common ones, and opens the session."""
    common = {each: taken for each, taken in _COMMON.items() if each not in without}

    def run(**given: Any) -> None:
        shared = {each: given.pop(each) for each in common}
        options = ApiOptions(**{each: shared.pop(each) for each in _WHERE})
        with reported(), Session(options, **shared) as session:
            function(session, **given)  # type: ignore[call-arg]

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    added = [
        inspect.Parameter(each, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
        for each, (kind, default) in common.items()
    ]
    taken = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own] + added
    run.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in taken}
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    return run


class reported:  # noqa: N801 - used as a statement
    """Prints what ends a command early, as lines and never as a traceback, and exits with its code."""

    def __enter__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # what the terminal's encoding lacks, such as an arrow in that of LANG=C
            sys.stdout.reconfigure(errors="backslashreplace")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        match error:
            case CommandFailed():
                for line in error.lines:
                    typer.echo(f"error: {printable(line)}", err=True)
                raise typer.Exit(error.code) from None
            case KeyboardInterrupt():
                raise typer.Exit(INTERRUPTED) from None
            case BrokenPipeError():
                _write_no_more()
                raise typer.Exit(BROKEN_PIPE) from None
            case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG | errno.EIO):
                _write_no_more()
                typer.echo(f"error: the output is not whole: {error.strerror}", err=True)
                raise typer.Exit(NOT_SO) from None


def _write_no_more() -> None:
    # Python would complain when it flushes at the end
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
