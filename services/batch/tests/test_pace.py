"""How much is under way, what is tried again, and how results are written."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.control_pb2 import Capacity
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_batch.core.results import CANCELLED, EXPIRED, answered, failed
from inferbus_batch.core.retrying import MAX_TRIES, pause, worth_another
from inferbus_batch.pace import Pace
from inferbus_dialect.errors import QUOTA
from inferbus_runtime.errors import InferBusError

NOTHING, SOME = Usage(), Usage(input_tokens=5)


@given(st.integers(0, 5000), st.integers(0, 9))
def test_all_that_share_a_model_have_twice_its_slots_under_way_and_each_a_few(slots, jobs):
    running = {"m": jobs}
    pace = Pace(lambda model: running.get(model, 0))
    pace.on_capacity(Capacity(model="m", scheduler="s", slots=slots))
    each = pace.most(["m"])
    assert each >= 8
    assert each == 8 or each * jobs <= 2 * slots
    assert pace.most(["m", "unknown"]) == 8
    running["m"] = 1
    assert pace.most(["m"]) == max(8, 2 * slots)


def test_of_two_schedulers_the_larger_word_counts():
    pace = Pace(lambda model: 1)
    for scheduler, slots in (("a", 10), ("b", 40), ("a", 20)):
        pace.on_capacity(Capacity(model="m", scheduler=scheduler, slots=slots))
    assert pace.most(["m"]) == 80


def fault(of: ErrorClass.ValueType, reason: str = "x") -> InferBusError:
    return InferBusError(of, reason, "said")


@pytest.mark.parametrize(
    ("error", "attempt", "usage", "again"),
    [
        (fault(ErrorClass.ERROR_CLASS_UNAVAILABLE), 0, SOME, True),
        (fault(ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED), 0, SOME, True),
        (fault(ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED), 0, SOME, True),
        (fault(ErrorClass.ERROR_CLASS_UNAVAILABLE), MAX_TRIES - 1, SOME, False),
        # It never began: the job waits for capacity as long as it has time.
        (fault(ErrorClass.ERROR_CLASS_UNAVAILABLE), MAX_TRIES - 1, NOTHING, True),
        (fault(ErrorClass.ERROR_CLASS_INVALID_ARGUMENT), 0, NOTHING, False),
        (fault(ErrorClass.ERROR_CLASS_INTERNAL), 0, NOTHING, False),
        (fault(ErrorClass.ERROR_CLASS_NOT_FOUND), 0, NOTHING, False),
        (fault(ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED, QUOTA), 0, NOTHING, False),
    ],
)
def test_what_is_tried_again(error, attempt, usage, again):
    assert worth_another(error, attempt, usage) is again


def test_the_longer_it_fails_the_longer_it_waits_up_to_five_minutes():
    waits = [pause(failures) for failures in range(30)]
    assert waits[0] == 0.0
    assert waits == sorted(waits)
    assert waits[-1] == 300.0


def test_lines_of_output_and_errors_are_as_openai_has_them():
    good = orjson.loads(answered("a", "ff", b'{"id":"chatcmpl-1"}'))
    assert good == {
        "id": "batch_req_ff", "custom_id": "a", "error": None,
        "response": {"status_code": 200, "request_id": "ff", "body": {"id": "chatcmpl-1"}},
    }  # fmt: skip
    bad = orjson.loads(failed("a", "ff", fault(ErrorClass.ERROR_CLASS_INVALID_ARGUMENT, "wrong")))
    assert (bad["response"]["status_code"], bad["response"]["body"]["error"]["code"]) == (400, "wrong")
    for error in (EXPIRED, CANCELLED):
        said = orjson.loads(failed("a", "ff", error))
        assert (said["response"], said["error"]["code"]) == (None, error.reason)
