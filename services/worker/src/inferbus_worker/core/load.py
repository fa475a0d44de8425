"""What a heartbeat tells besides the plain counts: who was served, what ended, what is still to be read.

Nothing is counted at a token: what each generation has is compared with what was told of it, when a heartbeat is made.
"""

from collections.abc import Iterable

from inferbus.bus.v1.control_pb2 import Heartbeat
from inferbus.common.v1.usage_pb2 import PriorityClass

from inferbus_worker.core.energy import input_weight
from inferbus_worker.core.running import Running

_Payer = tuple[str, str, PriorityClass.ValueType]
# Those of whom more was told than is true, until they are served again.
_OWED_PAYERS = 4096


class LoadCount:
    """Told of each generation at its begin and its end, and asked by :meth:`tell` for what has become of it since."""

    def __init__(self) -> None:
        self.prefill_tokens = 0
        """Of those that had no token when they were last looked at."""
        self.cleared = False
        """One that may be what its last worker died of has made a token here, and that was not told yet: its place is
        free for the next such one."""
        self._reading: dict[bytes, Running] = {}
        self._served: dict[_Payer, list[int]] = {}
        self._ended: dict[bytes, None] = {}
        self._ttft_us: list[int] = []
        self._failed: dict[bytes, int] = {}

    def begun(self, running: Running) -> None:
        running.told_tokens = len(running.ids)
        running.prefill_tokens = input_weight(running.request, len(running.ids))
        self.prefill_tokens += running.prefill_tokens
        self._reading[running.key] = running
        self._ended.pop(running.key, None)  # of its last attempt

    def ended(self, running: Running, input_tokens: int | None) -> None:
        """``input_tokens``: as they were counted at last; None: they were not, since another worker goes on with it."""
        self._leave(running, input_tokens)
        self.gone(running.key)

    def failed(self, running: Running) -> None:
        """It failed here, and nobody is told but schedulers, until it is recalled: then it is :meth:`gone`."""
        self._leave(running, None)
        self._failed[running.key] = running.attempt

    def _leave(self, running: Running, input_tokens: int | None) -> None:
        if running.key in self._reading:
            self._has_read(running)
        self._count(running)
        if input_tokens is not None and not running.resumed:
            self._serve(running)[0] += input_tokens - running.told_input_tokens

    def gone(self, key: bytes) -> None:
        """It holds nothing here any more, or never did."""
        self._ended[key] = None
        self._failed.pop(key, None)

    def look(self, running: Iterable[Running]) -> None:
        """Takes over the tokens of all that run."""
        self.look_at_reading()
        for one in running:
            if len(one.ids) != one.told_tokens:
                self._count(one)

    @property
    def reading(self) -> bool:
        """Whether some had no token when they were last looked at."""
        return bool(self._reading)

    def look_at_reading(self) -> bool:
        """Takes over who has a token by now; whether there was one."""
        begun = [one for one in self._reading.values() if len(one.ids) > one.told_tokens]
        for one in begun:
            self._has_read(one)
        return bool(begun)

    def tell(self, beat: Heartbeat) -> None:
        """Into ``beat`` what is new since the last one."""
        beat.prefill_tokens = self.prefill_tokens
        if self._failed:
            beat.failed_ids = b"".join(self._failed)
            beat.failed_attempts.extend(self._failed.values())
        if self._ended:
            beat.ended_ids = b"".join(self._ended)
            self._ended = {}
        if self._ttft_us:
            beat.ttft_us.extend(self._ttft_us)
            self._ttft_us = []
        if self._served:
            self._tell_served(beat)

    def _tell_served(self, beat: Heartbeat) -> None:
        served, self._served = self._served, {}
        for payer, (input_tokens, output_tokens) in served.items():
            tenant, project, priority = payer
            if input_tokens > 0 or output_tokens:
                beat.served.add(
                    tenant_id=tenant,
                    project_id=project,
                    priority_class=priority,
                    input_tokens=max(0, input_tokens),
                    output_tokens=output_tokens,
                )
            if input_tokens < 0 and len(self._served) < _OWED_PAYERS:
                self._served[payer] = [input_tokens, 0]  # estimated too high: less of the next ones is told

    def _has_read(self, running: Running) -> None:
        del self._reading[running.key]
        self.prefill_tokens -= running.prefill_tokens
        if running.request.resume.fruitless_deaths and len(running.ids) > running.told_tokens:
            self.cleared = True
        if len(running.ids) > running.told_tokens and not running.resumed:
            self._ttft_us.append(min(max(0, running.first_us - running.accepted_us), 0xFFFFFFFF))
            running.told_input_tokens = 0 if running.request.input_counted_elsewhere else running.prefill_tokens
            self._serve(running)[0] += running.told_input_tokens

    def _count(self, running: Running) -> None:
        fresh = len(running.ids) - running.told_tokens
        if fresh:
            self._serve(running)[1] += fresh
            running.told_tokens = len(running.ids)

    def _serve(self, running: Running) -> list[int]:
        context = running.context
        payer = (context.tenant_id, context.project_id, running.request.priority_class)
        return self._served.setdefault(payer, [0, 0])
