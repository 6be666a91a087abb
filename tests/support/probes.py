"""Asking as a kubelet does."""

from __future__ import annotations

import http.client


def ask(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str]:
    """Status and text of an answer. Blocks the event loop meanwhile: a probe must not need it."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode().strip()
    finally:
        connection.close()
