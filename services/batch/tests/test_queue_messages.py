"""What may come straight over the queue, and what is said of the rest."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_batch.core.lines import read_line
from inferbus_batch.core.queue_messages import AskedJob, AskedSingle, Refused, read_message, refusal

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
RESULTS = "job.result.acme.search.tag"
JOB = {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h"}


def read(said: Any) -> AskedJob | AskedSingle | Refused:
    data = said if isinstance(said, bytes) else orjson.dumps(said)
    return read_message(data, RESULTS, "message-7")


def single(**fields: Any) -> dict[str, Any]:
    return {"id": "one", "request": {"url": CHAT, "body": BODY}, **fields}


def test_a_single_request_is_a_line_of_a_batch() -> None:
    message = read(single())
    assert isinstance(message, AskedSingle)
    assert (message.to.name, message.to.subject, message.to.own) == ("one", "job.result.acme.search.tag.one", False)
    assert (message.url, message.window_s, message.plan.model) == (CHAT, 86_400, "m")
    line = read_line(1, message.line.removesuffix(b"\n"), CHAT)
    assert (line.custom_id, orjson.loads(line.body)) == ("one", BODY)  # type: ignore[union-attr]


def test_a_job_says_what_it_would_over_http() -> None:
    more = {"metadata": {"team": "x"}, "output_expires_after": {"anchor": "created_at", "seconds": 3600}}
    message = read({"job": {**JOB, **more}})
    assert isinstance(message, AskedJob)
    assert (message.to.name, message.to.subject) == ("", "job.result.acme.search.tag.message-7")
    assert (message.input_file_id, message.endpoint, message.window_s) == ("file-1", CHAT, 86_400)
    assert message.metadata == {"team": "x"}
    assert message.output_expire_after is not None
    assert message.output_expire_after.total_seconds() == 3600


def test_a_result_may_go_to_a_subject_of_its_project() -> None:
    message = read(single(result_subject="job.result.acme.search.tag.nightly.run-7"))
    assert isinstance(message, AskedSingle)
    assert (message.to.subject, message.to.own) == ("job.result.acme.search.tag.nightly.run-7", True)


@pytest.mark.parametrize(
    "subject",
    [
        *("job.result.globex.search.one", "job.result.acme.other.one", "job.result.acme.search.other.x", RESULTS),
        *(f"{RESULTS}{end}" for end in (".", ".*", ".>", ".a b", "..a", ".\u00fc", "." + "x" * 2000)),
        *("job.submit.acme.key.tag", 7, ""),
    ],
)
def test_a_result_goes_nowhere_else(subject: object) -> None:
    message = read(single(result_subject=subject))
    assert isinstance(message, Refused)
    assert (message.error.param, message.to.subject) == ("result_subject", "job.result.acme.search.tag.one")


@pytest.mark.parametrize(
    ("said", "reason", "param"),
    [
        (b"{not json", "invalid_json", ""),
        ([], "invalid_type", ""),
        ({}, "missing_required_parameter", ""),
        ({"id": "", "job": JOB}, "invalid_value", "id"),
        ({"id": None, "job": JOB}, "invalid_value", "id"),
        ({"id": "x" * 257, "job": JOB}, "invalid_value", "id"),
        ({"id": "\U0001f600" * 200, "job": JOB}, "invalid_value", "id"),
        ({"job": JOB, "request": {}}, "unknown_parameter", "request"),
        ({"job": {**JOB, "colour": 1}}, "unknown_parameter", "job.colour"),
        ({"job": {**JOB, "completion_window": "soon"}}, "invalid_value", "completion_window"),
        ({"job": {**JOB, "metadata": {"a": 1}}}, "invalid_type", "job.metadata"),
        ({"job": {"endpoint": CHAT}}, "missing_required_parameter", "job.input_file_id"),
        ({"job": {**JOB, "output_expires_after": 5}}, "invalid_value", "job.output_expires_after"),
        ({"request": {"url": CHAT, "body": BODY}}, "missing_required_parameter", "id"),
        ({"id": "one", "request": {"url": "/v1/models", "body": BODY}}, "invalid_value", "request.url"),
        ({"id": "one", "request": {"url": CHAT, "body": []}}, "invalid_type", "request.body"),
        ({"id": "one", "request": {"url": CHAT, "body": {"model": "m"}}}, None, "request.body.messages"),
        (
            {"id": "one", "request": {"url": CHAT, "body": {**BODY, "stream": True}}},
            "unsupported_parameter", "request.body.stream",
        ),
        (single(completion_window="15d"), "invalid_value", "completion_window"),
        (single(priority=1), "unknown_parameter", "priority"),
    ],
)  # fmt: skip
def test_each_fault_is_named(said: Any, reason: str | None, param: str) -> None:
    message = read(said)
    assert isinstance(message, Refused)
    assert message.error.param == param
    assert reason in (None, message.error.reason)
    told = orjson.loads(refusal(message.to.name, message.error))
    assert set(told) == {"id", "error"}
    assert told["error"]["message"]


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_members = st.sampled_from(["id", "job", "request", "result_subject", "completion_window", "url", "body", "model"])


@given(st.binary() | st.dictionaries(_members, _json | st.dictionaries(_members, _json)).map(orjson.dumps))
def test_whatever_comes_its_sender_hears_of_it_below_his_own_results(data: bytes) -> None:
    assert read(data).to.subject.startswith("job.result.acme.search.tag.")


@given(st.text(min_size=1, max_size=256).filter(lambda name: name.isascii()))
def test_an_id_is_one_token_of_the_subject(name: str) -> None:
    message = read({**single(), "id": name})
    assert isinstance(message, AskedSingle)
    assert message.to.subject.count(".") == 5
