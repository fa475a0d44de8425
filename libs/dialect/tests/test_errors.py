"""Every error has a status and OpenAI's body."""

import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_dialect.errors import error_body, http_status, of_status, retry_after_seconds
from inferbus_runtime.errors import InferBusError

ERRORS = st.builds(
    InferBusError,
    st.integers(0, 40),
    st.text(max_size=10),
    st.text(st.characters(), max_size=10),  # lone surrogates as well
    param=st.text(st.characters(), max_size=5),
    retry_after=st.none() | st.timedeltas(timedelta(0), timedelta(days=1)),
    diagnostic=st.just("OPERATOR ONLY"),
)


@given(ERRORS)
def test_any_error_has_a_status_and_a_body(error: InferBusError) -> None:
    assert 400 <= http_status(error) <= 599
    body = error_body(error)
    assert b"OPERATOR ONLY" not in body
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    seconds = retry_after_seconds(error)
    assert seconds is None or seconds >= 1
    if error.retry_after is not None:
        assert seconds is not None
        assert seconds >= error.retry_after.total_seconds()


def test_every_class_is_in_the_table() -> None:
    statuses = {name: http_status(InferBusError(value, "", "")) for name, value in ErrorClass.items()}
    assert statuses == {
        "ERROR_CLASS_UNSPECIFIED": 500, "ERROR_CLASS_INVALID_ARGUMENT": 400, "ERROR_CLASS_UNAUTHENTICATED": 401,
        "ERROR_CLASS_PERMISSION_DENIED": 403, "ERROR_CLASS_NOT_FOUND": 404, "ERROR_CLASS_CONFLICT": 409,
        "ERROR_CLASS_RESOURCE_EXHAUSTED": 429, "ERROR_CLASS_UNAVAILABLE": 503, "ERROR_CLASS_DEADLINE_EXCEEDED": 504,
        "ERROR_CLASS_CANCELLED": 499, "ERROR_CLASS_INTERNAL": 500,
    }  # fmt: skip


@pytest.mark.parametrize("error_class", ["ERROR_CLASS_RESOURCE_EXHAUSTED", "ERROR_CLASS_UNAVAILABLE"])
def test_who_may_come_back_is_told_when(error_class: str) -> None:
    error = InferBusError(ErrorClass.Value(error_class), "full", "")
    assert retry_after_seconds(error) == 1


@given(st.integers(400, 599))
def test_a_status_of_the_http_library_keeps_its_kind(status: int) -> None:
    ours = http_status(of_status(status))
    assert ours // 100 == status // 100
    if status in (400, 404, 405, 408, 413, 417, 431, 500):
        assert ours == status
