"""Time that passes only when a test says so."""

import asyncio


class VirtualTime:
    """Stands in for `asyncio.sleep` and for a clock, both in seconds. A sleep of 0 gives way and returns."""

    def __init__(self) -> None:
        self.now_seconds = 0.0
        self.slept_seconds: list[float] = []
        self._sleepers: dict[asyncio.Future[None], float] = {}
        self._changed = asyncio.Event()

    def now(self) -> float:
        return self.now_seconds

    async def sleep(self, seconds: float) -> None:
        self.slept_seconds.append(seconds)
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        alarm: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers[alarm] = self.now_seconds + seconds
        self._changed.set()
        try:
            await alarm
        finally:
            self._sleepers.pop(alarm, None)

    async def until_asleep(self, num_sleepers: int) -> None:
        """Wait until exactly so many tasks sleep."""
        while len(self._sleepers) != num_sleepers:
            self._changed.clear()
            await self._changed.wait()

    def advance(self, seconds: float) -> None:
        """Let time pass; who should have woken up by then is woken."""
        self.now_seconds += seconds
        for alarm, due in list(self._sleepers.items()):
            if due <= self.now_seconds + 1e-9 and not alarm.done():
                del self._sleepers[alarm]
                alarm.set_result(None)
