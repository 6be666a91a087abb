"""Builds and parses the Secrets of agents and of signed streams.

An agent's is laid out as a Service Binding (https://servicebinding.io) with everything that the SDK needs.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from agentstream.errors import SettingsError
from agentstream.protocol.signatures import decode_keys, encode_keys, entry_name
from agentstream_operator.cluster.labels import (
    AGENT_LABEL,
    MANAGED_BY,
    MANAGER,
    STREAM_LABEL,
    owner_references,
    secret_name,
    signing_secret_name,
)
from agentstream_operator.cluster.port import Credentials, Owner, SigningKeys
from agentstream_operator.resources.meta import GROUP, ResourceKey

AUTHORITY: Final = "ca.crt"
"""The entry with the CA certificate of the server."""

MIN_PASSWORD: Final = 32
"""Characters of an agent's password: one that somebody else has put into the Secret may be easy to guess."""

_LONGEST, _LONGEST_SIGNING, _MOST_SIGNING = 1_024, 16_384, 2_000
"""Characters of user and password, and of an entry about signatures in base64; the number of such entries.

What somebody has put into a Secret beyond that is not kept in memory.
"""

_TYPE = "servicebinding.io/redis"
_SIGNING_TYPE = f"{GROUP}/signing-keys"
_KEYS = "keys"
_SIGNING = entry_name("")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The server's address for agents, without credentials."""

    uri: str
    host: str
    port: int
    authority: str | None = None  # the CA certificate (PEM) for TLS


def binding_entries(credentials: Credentials, server: ServerAddress, installation: str) -> dict[str, str]:
    """Builds the entries of an agent's Service Binding; the password comes last."""
    entries = {
        "type": "redis",
        "provider": "agentstream",
        "uri": server.uri,
        "host": server.host,
        "port": str(server.port),
        "namespace": credentials.namespace,
        "agent": credentials.agent,
        "installation": installation,
        **{entry_name(stream): keys for stream, keys in credentials.signing.items()},
    }
    if server.authority is not None:
        entries[AUTHORITY] = server.authority
    return {**entries, "username": credentials.username, "password": credentials.password}


def secret(
    credentials: Credentials, owners: tuple[Owner, ...], server: ServerAddress, installation: str
) -> dict[str, Any]:
    """Builds the Secret of an agent."""
    entries = binding_entries(credentials, server, installation)
    return {
        "metadata": {
            "name": secret_name(credentials.agent),
            "namespace": credentials.namespace,
            "labels": {MANAGED_BY: MANAGER, AGENT_LABEL: credentials.agent},
            "ownerReferences": owner_references(owners),
        },
        "type": _TYPE,
        "data": {name: _encoded(text) for name, text in entries.items()},
    }


def credentials_in(found: Mapping[str, Any]) -> Credentials | None:
    """Parses the Secret of an agent; None if it is incomplete or has a poor password: it is replaced."""
    metadata = found["metadata"]
    agent = (metadata.get("labels") or {}).get(AGENT_LABEL)
    try:
        data = found["data"]
        username, password = (_decoded(data[entry]) for entry in ("username", "password"))
        signing = {
            # an entry that is long or no text was changed, and is written again
            entry.removeprefix(_SIGNING): (
                base64.b64decode(text).decode(errors="replace") if len(text) <= _LONGEST_SIGNING else ""
            )
            for entry, text in islice(
                ((entry, text) for entry, text in data.items() if entry.startswith(_SIGNING)), _MOST_SIGNING
            )
        }
    except (KeyError, TypeError, ValueError):
        return None
    if agent is None or metadata["name"] != secret_name(agent):
        return None
    if not MIN_PASSWORD <= len(password) <= _LONGEST or len(username) > _LONGEST:
        return None
    owners = frozenset(str(owner["uid"]) for owner in metadata.get("ownerReferences") or ())
    return Credentials(metadata["namespace"], agent, username, password, owners, signing)


def signing_secret(keys: SigningKeys, owner: Owner) -> dict[str, Any]:
    """Builds the Secret with the signing keys of a stream."""
    name, namespace = keys.stream.name, keys.stream.namespace
    return {
        "metadata": {
            "name": signing_secret_name(name),
            "namespace": namespace,
            "labels": {MANAGED_BY: MANAGER, STREAM_LABEL: name},
            "ownerReferences": owner_references((owner,)),
        },
        "type": _SIGNING_TYPE,
        "data": {_KEYS: _encoded(encode_keys(keys.keys))},
    }


def signing_keys_in(found: Mapping[str, Any]) -> SigningKeys | None:
    """Parses the Secret with the signing keys of a stream; None if it is invalid."""
    metadata = found["metadata"]
    stream = (metadata.get("labels") or {}).get(STREAM_LABEL)
    if stream is None or metadata["name"] != signing_secret_name(stream):
        return None
    try:
        keys = decode_keys(_decoded(found["data"][_KEYS]))
    except (KeyError, TypeError, ValueError, SettingsError):
        return None
    owners = [str(owner["uid"]) for owner in metadata.get("ownerReferences") or ()]
    # any other number of owners is corrected
    owner = owners[0] if len(owners) == 1 else ""
    return SigningKeys(ResourceKey("AgentStream", metadata["namespace"], stream), keys, owner)


def address_of(server: ServerAddress) -> str:
    """Returns the digest of the address and CA certificate, as `address_in` a Secret."""
    authority = server.authority
    return _digest(_encoded(server.uri), _encoded(authority) if authority is not None else None)


def address_in(found: Mapping[str, Any]) -> str:
    """Returns the digest of the address and CA certificate of a Secret, which may be large."""
    data = found.get("data") or {}
    return _digest(data.get("uri"), data.get(AUTHORITY))


def _digest(*entries: str | None) -> str:
    return hashlib.sha256(repr(entries).encode()).hexdigest()


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
