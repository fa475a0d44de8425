"""How the models of this repository run: each request is a task on one asyncio loop, so that many stream at once.

Responses and cancels are as in the real backends: the final flag comes with the last token, cancels are looked for
every few milliseconds, and a request that says ``stop`` cancels the one of the same id.
"""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from llama_http import LlamaHttp, RefusedError

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_CANCEL_SECONDS = 0.02


class Inputs:
    """The tensors of a request, by name; batch size 1."""

    def __init__(self, request: Any) -> None:
        self._tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}

    def value(self, name: str, default: Any = None) -> Any:
        """The only value of a tensor."""
        tensor = self._tensors.get(name)
        if tensor is None:
            return default
        value = tensor.reshape(-1)[0]
        return value.decode() if isinstance(value, bytes) else value.item() if hasattr(value, "item") else value

    def values(self, name: str) -> list[Any]:
        tensor = self._tensors.get(name)
        return [] if tensor is None else tensor.reshape(-1).tolist()


def tensor(name: str, values: Any, dtype: Any) -> Any:
    return pb_utils.Tensor(name, np.array(values, dtype=dtype))


class Answer:
    """Where one request's responses go."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender

    def send(self, tensors: list[Any], final: bool) -> None:
        self._sender.send(pb_utils.InferenceResponse(output_tensors=tensors), flags=FINAL if final else 0)

    def close(self) -> None:
        """The final flag alone."""
        self._sender.send(flags=FINAL)

    def fail(self, text: str, tensors: list[Any] | None = None, cancelled: bool = False) -> None:
        code = pb_utils.TritonError.CANCELLED if cancelled else pb_utils.TritonError.INTERNAL
        error = pb_utils.TritonError(text, code)
        self._sender.send(pb_utils.InferenceResponse(output_tensors=tensors or [], error=error), flags=FINAL)

    def cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())


Serve = Callable[[Inputs, Answer], Awaitable[None]]


class Serving:
    """``serve`` answers one request. ``refusal``: how an error of the engine is worded."""

    def __init__(self, args: dict[str, str], serve: Serve, refusal: Callable[[RefusedError], str]) -> None:
        self.config = json.loads(args["model_config"])
        self.llama = LlamaHttp(self.parameter("llama_cpp"))
        self.polls_cancel = self.parameter("polls_cancel", "yes") == "yes"
        self._serve = serve
        self._refusal = refusal
        self._tasks: dict[str, set[asyncio.Task[None]]] = {}
        # A request beyond these waits in execute(), and those behind it in Triton's queue.
        self._room = threading.Semaphore(int(self.parameter("max_inflight", "512")))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def parameter(self, name: str, default: str = "") -> str:
        return str(self.config["parameters"].get(name, {}).get("string_value", default))

    @property
    def running(self) -> int:
        return sum(len(tasks) for tasks in self._tasks.values())

    def begin(self, request: Any) -> None:
        """Returns at once, unless ``max_inflight`` are running."""
        self._room.acquire()
        inputs, answer = Inputs(request), Answer(request.get_response_sender())
        asyncio.run_coroutine_threadsafe(self._run(request.request_id(), inputs, answer), self._loop)

    def stop_request(self, request_id: str) -> None:
        """Cancels all of that id."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._tasks.get(request_id, ())])

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2)

    async def _run(self, request_id: str, inputs: Inputs, answer: Answer) -> None:
        work = asyncio.create_task(self._served(inputs, answer))
        self._tasks.setdefault(request_id, set()).add(work)
        try:
            while not work.done():
                await asyncio.wait([work], timeout=_CANCEL_SECONDS if self.polls_cancel else None)
                if not work.done() and answer.cancelled():
                    work.cancel()
            if work.cancelled():
                answer.fail("Request cancelled by client", cancelled=True)
        finally:
            tasks = self._tasks[request_id]
            tasks.discard(work)
            if not tasks:
                del self._tasks[request_id]
            self._room.release()

    async def _served(self, inputs: Inputs, answer: Answer) -> None:
        try:
            await self._serve(inputs, answer)
        except RefusedError as error:
            answer.fail(self._refusal(error))
        except Exception as error:
            answer.fail(repr(error))
