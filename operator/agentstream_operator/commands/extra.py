"""Says in one line how to get what a command needs and a plain installation leaves out."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

KUBERNETES = frozenset({"aiohttp", "kopf", "kubernetes"})
"""The packages of the extra `kubernetes`: what talks to a cluster, and is larger than all others together."""


class Commands(TyperGroup):
    """Runs commands; one that needs an extra that is not installed names it, and ends with exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the chosen command.

        Args:
            ctx: click's context, which typer brings a copy of.

        Raises:
            ModuleNotFoundError: a module is missing that belongs to no extra.
        """
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as missing:
            if (missing.name or "").partition(".")[0] not in KUBERNETES:
                raise
            typer.echo(
                f"error: `agentstream {ctx.invoked_subcommand}` needs more packages: "
                "pip install 'agentstream-operator[kubernetes]'",
                err=True,
            )
            raise typer.Exit(2) from None
