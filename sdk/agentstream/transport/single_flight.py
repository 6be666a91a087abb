"""Single flight: concurrent callers for one key share one fetch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_Result = TypeVar("_Result")


class SingleFlight(Generic[_Result]):
    """Shares the result of a fetch with all who ask for the same key while it is under way."""

    def __init__(self) -> None:
        self._calls: dict[str, asyncio.Future[_Result]] = {}

    async def do(self, key: str, fetch: Callable[[], Awaitable[_Result]]) -> _Result:
        """Returns, or raises, the outcome of the first caller's `fetch` for a key.

        If the first caller is cancelled, another one fetches.
        """
        while (others := self._calls.get(key)) is not None:
            await asyncio.wait({others})
            if not others.cancelled():
                return others.result()
        own: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        self._calls[key] = own
        try:
            result = await fetch()
        except Exception as error:
            own.set_exception(error)
            # no other caller may be there to take the error
            own.exception()
            raise
        else:
            own.set_result(result)
        finally:
            del self._calls[key]
            own.cancel()
        return result
