"""The running set, with an engine that does what none should."""

from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_bus.connection import Bus
from inferbus_bus.frames import FramePublisher
from inferbus_worker.config import Config
from inferbus_worker.core.restarts import RestartLimit
from inferbus_worker.core.running import Running, running_of
from inferbus_worker.direct import Direct
from inferbus_worker.engine import Generation
from inferbus_worker.engines.synthetic import Synthetic
from inferbus_worker.generations import Generations


class Choking(Synthetic):
    """Raises at what it is given, as a fault in an engine's code would."""

    def submit(self, generation: Generation) -> None:
        raise TypeError("not for me")


async def test_a_request_on_which_an_engine_chokes_ends(bus: Bus) -> None:
    engine = Choking.from_config(Config(name="w", engine="synthetic"))
    info = await engine.start()
    frames = FramePublisher(bus.config, worker="w", boot=1, max_unacked=10)
    await frames.start()
    generations = Generations(engine, info, frames, Direct(engine), RestartLimit(3, 60.0))
    ended: list[tuple[Running, FinishReason.ValueType]] = []
    generations.on_end(lambda running, reason, _: ended.append((running, reason)))
    request = GenerateRequest(request_id=b"k" * 16, edge="edge-choking")
    request.chat.messages.add(role="user", content="x")
    running = running_of(Work(request=request), info.revision, 1)
    try:
        generations.add(running)
        await generations.idle()
    finally:
        await frames.stop()
        await engine.stop()
    assert ended == [(running, FinishReason.FINISH_REASON_ERROR)]
    assert not generations.running
