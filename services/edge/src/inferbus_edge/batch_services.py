"""The batch services that the operator named. Each has all files and all jobs, whoever runs them."""

from collections.abc import Callable, Sequence
from typing import Any

import grpc

_CANNOT = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)


class BatchServices:
    """``channels``: to each of them, at least one."""

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._channels = tuple(channels)
        self._stubs: dict[Any, Any] = {}

    def stub(self, make: Callable[[grpc.aio.Channel], Any]) -> Any:
        """``make`` of the first one that is there, so that calls that belong together mostly come to the same."""
        channel = self._nearest()
        if (made := self._stubs.get((make, channel))) is None:
            made = self._stubs[make, channel] = make(channel)
        return made

    def _nearest(self) -> grpc.aio.Channel:
        states = [channel.get_state(try_to_connect=True) for channel in self._channels]
        if grpc.ChannelConnectivity.READY in states:
            return self._channels[states.index(grpc.ChannelConnectivity.READY)]
        # None is known to be there: one that may be, else the first, whose answer says what is wrong.
        return next(
            (one for one, state in zip(self._channels, states, strict=True) if state not in _CANNOT), self._channels[0]
        )
