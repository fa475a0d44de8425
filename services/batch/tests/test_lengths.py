"""What can be said of an input's length without its tokenizer is never wrong."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferbus_batch.core.lengths import Length, length_of
from inferbus_batch.core.lines import plan_line
from inferbus_dialect.plan import Plan

BODIES = {
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/v1/completions": lambda text: {"prompt": text},
    "/v1/embeddings": lambda text: {"input": ["short", text]},
    "/v1/responses": lambda text: {"input": text},
}


def planned(endpoint: str, body: dict[str, object]) -> Plan:
    plan = plan_line(1, orjson.dumps({"model": "m", **body}), endpoint)
    assert isinstance(plan, Plan)
    return plan


@pytest.mark.parametrize("endpoint", BODIES)
@settings(max_examples=30)
@given(st.text(min_size=1, max_size=20), st.integers(1, 2000), st.integers(1, 20_000))
def test_a_bound_holds_for_any_tokenizer(endpoint, text, times, context):
    said = length_of(planned(endpoint, BODIES[endpoint](text * times)), context)
    fewest, most = len(text * times) / 512, len((text * times).encode())
    if said is Length.FITS:
        assert most <= context
    if said is Length.OVER:
        assert fewest > context - 1


def test_ids_are_counted():
    assert length_of(planned("/v1/completions", {"prompt": [1] * 100}), 101) is Length.FITS
    assert length_of(planned("/v1/completions", {"prompt": [1] * 100}), 100) is Length.OVER
    assert length_of(planned("/v1/embeddings", {"input": [[1] * 100, [1]]}), 100) is Length.FITS
    assert length_of(planned("/v1/embeddings", {"input": [[1] * 100, [1] * 101]}), 100) is Length.OVER


def test_of_a_model_that_does_not_say_all_fit():
    assert length_of(planned("/v1/completions", {"prompt": [1] * 100}), 0) is Length.FITS
