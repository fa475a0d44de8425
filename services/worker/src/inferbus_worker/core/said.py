"""What was said of requests that are not here: it may have overtaken them."""

from collections import OrderedDict

_SECONDS = 30.0
_MOST = 65536


class Said:
    """A number for each request, remembered for half a minute; of very many the oldest are forgotten sooner. ``now``:
    monotonic seconds."""

    def __init__(self) -> None:
        self._said: OrderedDict[bytes, tuple[float, int]] = OrderedDict()

    def say(self, key: bytes, now: float, number: int = 1) -> None:
        """The highest number of a request counts."""
        number = max(number, self.get(key, now))
        self._said.pop(key, None)
        while self._said and (len(self._said) >= _MOST or next(iter(self._said.values()))[0] <= now):
            self._said.popitem(last=False)
        self._said[key] = (now + _SECONDS, number)

    def get(self, key: bytes, now: float) -> int:
        """0: nothing was said."""
        until, number = self._said.get(key, (0.0, 0))
        return number if until > now else 0
