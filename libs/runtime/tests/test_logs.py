import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from inferbus_runtime import logs
from inferbus_runtime.telemetry import get_logger, span

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    logs.configure("room", "room-0", "info", stream)
    yield stream
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object(lines: io.StringIO) -> None:
    log = get_logger("inferbus_room.part")
    log.debug("not written")
    log.info("two\nlines %d", 7, extra={"rows": 3, "service": "mine", "what": object})
    (line,) = written(lines)
    assert line.pop("ts").endswith("+00:00")
    assert line.pop("what") == "<class 'object'>"
    assert line == {
        "level": "info",
        "logger": "inferbus_room.part",
        "message": "two\nlines 7",
        "service": "room",
        "instance": "room-0",
        "rows": 3,
        "extra_service": "mine",
    }


def test_an_exception_is_one_field(lines: io.StringIO) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        get_logger("room").exception("it failed")
    (line,) = written(lines)
    assert line["message"] == "it failed"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: broken")


def test_lines_inside_a_span_name_their_trace(lines: io.StringIO) -> None:
    with span("work", {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}):
        get_logger("room").info("inside")
    get_logger("room").info("outside")
    inside, outside = written(lines)
    assert inside["trace_id"] == TRACE
    assert "trace_id" not in outside


def test_chatty_libraries_are_quiet(lines: io.StringIO) -> None:
    get_logger("aiohttp.access").info("GET /")
    get_logger("grpc").warning("heard")
    assert [line["message"] for line in written(lines)] == ["heard"]
