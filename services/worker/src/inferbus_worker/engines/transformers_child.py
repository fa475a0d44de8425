"""The child process: Hugging Face's continuous batching on PyTorch. Run by :mod:`.transformers_process` only.

A fault of CUDA ends a process, and nothing less makes it well again: so it is one of its own. A message, either way, is
a line of JSON, the first from the worker being the settings. To the child: ``add`` (serial, tokens at most, ids,
sampling) and ``cancel`` (serials). From it: ``refused`` (setting, why) or ``ready``, then one line an engine step:
``step`` (serials, the next token of each, serials that ended with it) and ``used`` (blocks of the KV cache). Steps that
only read a prompt have an empty line at most once a second: a sign of life.

The line of a step is written by the thread that steps: while nobody reads, the pipe fills and generation stands still.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import orjson

from inferbus_worker.engines.llama_cpp_server import die_with
from inferbus_worker.engines.transformers_batching import Batching, batching_of
from inferbus_worker.engines.transformers_weights import RefusedError, weights_of

# Nobody's model is fetched, and nobody is told what runs here.
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_WATCH_SECONDS = 0.2
_SIGN_SECONDS = 1.0
_LONGEST_REASON = 2000


class Steps:
    """What the library's thread delivers to, in the place of its OutputRouter: each call is one engine step, and
    :meth:`stepped` follows each step, also those in which nobody has a token."""

    def __init__(self, write: BinaryIO) -> None:
        self._write = write
        self._sent: dict[int, int] = {}
        self._told_at = 0.0
        self.first = threading.Event()
        self.blocks_used: Callable[[], int] = lambda: 0

    def expect(self, serial: int) -> None:
        self._sent[serial] = 0

    def forget(self, serial: int) -> None:
        """What is still delivered of it, is for nobody."""
        self._sent.pop(serial, None)

    def deliver_batch(self, outputs: list[Any]) -> None:
        """An output has all tokens of its generation so far."""
        serials: list[int] = []
        tokens: list[int] = []
        ended: list[int] = []
        for output in outputs:
            if output.error is not None:
                # It refuses nothing that we send; and what a step fails with, the next one would, too.
                end_process(f"a generation failed: {output.error}")
            serial = int(output.request_id)
            if (sent := self._sent.get(serial)) is None:
                continue
            new = output.generated_tokens[sent:]
            tokens += new
            serials += [serial] * len(new)
            if output.is_finished():
                self._sent.pop(serial, None)
                ended.append(serial)
            else:
                self._sent[serial] = sent + len(new)
        self.first.set()
        if serials or ended:
            self._tell(serials, tokens, ended)

    def stepped(self) -> None:
        """Without it a long prompt alone would be taken for an engine that stands still."""
        if self._sent and time.monotonic() - self._told_at >= _SIGN_SECONDS:
            self._tell([], [], [])

    def deliver(self, output: Any) -> None:
        self.deliver_batch([output])

    def _tell(self, serials: list[int], tokens: list[int], ended: list[int]) -> None:
        send(self._write, {"step": [serials, tokens, ended], "used": self.blocks_used()})
        self._told_at = time.monotonic()

    def fail_and_deliver(self, state: Any, error: Exception) -> None:
        end_process(f"the engine's loop failed: {error!r} with {state.request_id}")


def send(to: BinaryIO, message: Mapping[str, Any]) -> None:
    """Whole, however long: a pipe takes what it has room for."""
    data = memoryview(orjson.dumps(message) + b"\n")
    while data:
        data = data[os.write(to.fileno(), data) :]


def end_process(why: str) -> None:
    """At once, from any thread: the library's own is no daemon."""
    sys.stderr.write(f"{why}\n")
    sys.stderr.flush()
    os._exit(70)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the worker ends us after its drain
    # Libraries print. What the worker reads is ours alone, and theirs goes where errors go.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    settings = orjson.loads(sys.stdin.buffer.readline())
    die_with(settings["parent"])
    os.environ.update(_QUIET)  # noqa: TID251  (variables of the libraries, read when they are imported)
    steps = Steps(out)
    try:
        batching = batching_of(weights_of(settings), settings, steps)
    except RefusedError as error:
        send(out, {"refused": [error.setting, str(error)[:_LONGEST_REASON]]})
        return
    batching.start()
    # One token, whatever it is: an engine that makes one works.
    batching.add(0, 1, [0], {"temperature": 1.0, "top_k": 1, "top_p": 1.0, "greedy": 1} if settings["samples"] else {})
    while not steps.first.wait(_WATCH_SECONDS):
        if not batching.is_running():
            end_process(f"there was no first token: {batching.trouble()}")
    steps.blocks_used = batching.blocks_used
    send(out, {"ready": batching.about()})
    threading.Thread(target=_watch, args=(batching,), name="watch", daemon=True).start()
    _serve(batching, steps)


def _watch(batching: Batching) -> None:
    """The library catches what ends its thread, and says so to nobody."""
    while batching.is_running():
        time.sleep(_WATCH_SECONDS)
    end_process(f"the engine's loop ended: {batching.trouble()}")


def _serve(batching: Batching, steps: Steps) -> None:
    """Until the worker closes the pipe, or ends."""
    for line in sys.stdin.buffer:
        message = orjson.loads(line)
        if (added := message.get("add")) is not None:
            steps.expect(added[0])
            batching.add(*added)
        for serial in message.get("cancel", ()):
            steps.forget(serial)
            batching.cancel(serial)
    os._exit(0)


if __name__ == "__main__":
    main()
