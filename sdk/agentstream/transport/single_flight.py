"""What several want at the same time is fetched once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_Result = TypeVar("_Result")


class SingleFlight(Generic[_Result]):
    """What is being fetched just now, by name."""

    def __init__(self) -> None:
        self._under_way: dict[str, asyncio.Future[_Result]] = {}

    async def of(self, name: str, fetch: Callable[[], Awaitable[_Result]]) -> _Result:
        """What `fetch` returns or raises, of the first who asks, for all who ask for the same meanwhile.

        If the first one is cancelled, another one fetches.
        """
        while (others := self._under_way.get(name)) is not None:
            await asyncio.wait({others})
            if not others.cancelled():
                return others.result()
        own: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        self._under_way[name] = own
        try:
            result = await fetch()
        except Exception as error:
            own.set_exception(error)
            # there may be no others who want to know
            own.exception()
            raise
        else:
            own.set_result(result)
        finally:
            del self._under_way[name]
            own.cancel()
        return result
