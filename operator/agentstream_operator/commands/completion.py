"""Completes names on the command line: groups, streams, replays, namespaces and contexts.

Whatever goes wrong, there is nothing to complete: a shell must not show errors in the middle of a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from typer import Context

if TYPE_CHECKING:
    from agentstream_operator.commands.session import Session
    from agentstream_operator.queue_api.documents import LagAnswer


def groups(ctx: Context, incomplete: str) -> list[str]:
    """Completes names of ConsumerGroups."""
    return _complete(ctx, incomplete, lambda s: (g.name for g in _lag(s).groups if _meant(s, g.namespace)))


def streams(ctx: Context, incomplete: str) -> list[str]:
    """Completes names of AgentStreams."""
    return _complete(ctx, incomplete, lambda s: (g.name for g in _lag(s).streams if _meant(s, g.namespace)))


def addressees(ctx: Context, incomplete: str) -> list[str]:
    """Completes names of ConsumerGroups and of AgentStreams."""
    return sorted({*groups(ctx, incomplete), *streams(ctx, incomplete)})


def replays(ctx: Context, incomplete: str) -> list[str]:
    """Completes names of StreamReplays."""

    def named(session: Session) -> Iterable[str]:
        from agentstream_operator.queue_api.documents import ReplaysAnswer

        found = session.api.get("/queue/replays", ReplaysAnswer, {"namespace": session.namespace})
        return (each.name for each in found.replays)

    return _complete(ctx, incomplete, named)


def namespaces(ctx: Context, incomplete: str) -> list[str]:
    """Completes names of namespaces that have streams or groups."""
    return _complete(ctx, incomplete, lambda s: _namespaces(_lag(s)))


def contexts(ctx: Context, incomplete: str) -> list[str]:
    """Completes names of contexts of the kubeconfig."""

    def named(session: Session) -> Iterable[str]:
        from agentstream_operator.commands.forward import context_names

        return context_names(session.options.kubeconfig)

    return _complete(ctx, incomplete, named)


def _complete(ctx: Context, incomplete: str, names: Callable[[Session], Iterable[str]]) -> list[str]:
    from agentstream_operator.commands.options import ApiOptions
    from agentstream_operator.commands.session import Session

    try:
        given = {name: ctx.params.get(name) for name in ApiOptions.__slots__}
        given["all_namespaces"] = bool(given["all_namespaces"])
        with Session(ApiOptions(**given)) as session:  # type: ignore[arg-type]
            found = set(names(session))
    except Exception:  # noqa: BLE001 - a shell shows it in the middle of a line
        return []
    # a name is what somebody else chose, and the shell reads it
    return sorted(
        n for n in found if n.startswith(incomplete) and n.replace("-", "").replace(".", "").isalnum()
    )


def _lag(session: Session) -> LagAnswer:
    from agentstream_operator.queue_api.documents import LagAnswer

    return session.api.get("/queue/lag", LagAnswer)


def _namespaces(answer: LagAnswer) -> set[str]:
    return {group.namespace for group in answer.groups} | {stream.namespace for stream in answer.streams}


def _meant(session: Session, namespace: str) -> bool:
    return session.namespace in {None, namespace}
