"""Hooks with which gunicorn's worker processes enter and leave the agent of `prefork`."""

from typing import Any

import prefork


def post_worker_init(_worker: Any) -> None:
    """Runs in each new worker process; a gevent worker has patched the standard library by then."""
    prefork.start()


def worker_exit(_server: Any, _worker: Any) -> None:
    """Runs in a worker process that ends: at SIGTERM, a reload, or `max_requests`."""
    prefork.stop()
