"""Usage in OpenAI's shape: pages, results, and what is asked of the meter. And what a call says of itself."""

import json
from collections import defaultdict
from decimal import Decimal
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus.meter.v1.usage_pb2 import CostBucket, UsageBucket, UsageFilter, UsageGroup
from inferbus_contracts.erasure import ERASED
from inferbus_dialect.chat_plan import plan_chat
from inferbus_dialect.completions import parse_completion_request, plan_completion
from inferbus_dialect.embeddings import parse_embedding_request, plan_embeddings
from inferbus_dialect.labels import end_user_of, labels_of, tags_of
from inferbus_dialect.openai import parse_chat_request
from inferbus_dialect.responses_items import items_of
from inferbus_dialect.responses_plan import plan_responses
from inferbus_dialect.responses_schema import parse_responses_request
from inferbus_dialect.schema import parse
from inferbus_edge.core.messages_plan import plan_message
from inferbus_edge.core.messages_schema import MessageRequest
from inferbus_edge.core.organization_results import cost_results, usage_results
from inferbus_edge.core.organization_usage import KINDS, costs_asked, page_object, usage_asked
from inferbus_edge.core.usage_query import dimensions_of, report_of
from inferbus_runtime.errors import InferBusError

COMPLETIONS = KINDS[0]
NOW = 1_790_000_000
WIDTHS = {"1m": 60, "1h": 3600, "1d": 86_400}

# --- pages ------------------------------------------------------------------------------------------------------------


def fetched(query: list[tuple[str, str]], now: int) -> list[tuple[int, int]]:
    """The buckets of all pages, read as a client does."""
    found: list[tuple[int, int]] = []
    page = None
    while True:
        asked = usage_asked(COMPLETIONS, [*query, *([("page", page)] if page else [])], now)
        shown = page_object(asked.page, {})
        found += [(bucket["start_time"], bucket["end_time"]) for bucket in shown["data"]]
        if not shown["has_more"]:
            assert shown["next_page"] is None
            return found
        assert shown["data"]
        page = shown["next_page"]


@given(
    st.sampled_from(sorted(WIDTHS)), st.integers(0, 100_000), st.one_of(st.none(), st.integers(1, 2_000_000)),
    st.integers(1, 31), st.integers(0, 200_000),
)  # fmt: skip
def test_pages_have_each_moment_in_one_bucket(
    name: str, start: int, length: int | None, limit: int, elapsed: int
) -> None:
    width = WIDTHS[name]
    start, length = NOW + start, None if length is None else length % (width * 100) + 1
    now = min(start + elapsed, start + width * 100)
    query = [("start_time", str(start)), ("bucket_width", name), ("limit", str(limit))]
    query += [] if length is None else [("end_time", str(start + length))]
    buckets = fetched(query, now)
    present = (now // width + 1) * width
    end = present if length is None else min(start + length, present)
    assert buckets[0][0] == start
    assert buckets[-1][1] == end
    assert all(before[1] == after[0] for before, after in pairwise(buckets))
    assert all(begin // width == (after - 1) // width for begin, after in buckets)
    assert all(begin % width == 0 for begin, _ in buckets[1:])


def test_what_is_to_come_has_no_buckets() -> None:
    asked = usage_asked(COMPLETIONS, [("start_time", str(NOW + 10**7))], NOW)
    assert page_object(asked.page, {}) == {"object": "page", "data": [], "has_more": False, "next_page": None}


def test_how_many_buckets_a_page_has() -> None:
    for width, default, most in (("1m", 60, 1440), ("1h", 24, 168), ("1d", 7, 31)):
        query = [("start_time", "0"), ("bucket_width", width)]
        assert len(usage_asked(COMPLETIONS, query, NOW).page.buckets) == default
        assert len(usage_asked(COMPLETIONS, [*query, ("limit", str(most))], NOW).page.buckets) == most
        with pytest.raises(InferBusError, match=f"1 to {most}"):
            usage_asked(COMPLETIONS, [*query, ("limit", str(most + 1))], NOW)
    assert len(costs_asked([("start_time", "0"), ("limit", "180")], NOW).page.buckets) == 180


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({}, "start_time"), ({"start_time": "soon"}, "start_time"), ({"start_time": "9", "end_time": "9"}, "end_time"),
        ({"start_time": "9", "bucket_width": "1w"}, "bucket_width"), ({"start_time": "9", "limit": "0"}, "limit"),
        ({"start_time": "9", "group_by[]": "line_item"}, "group_by"), ({"start_time": "9", "page": "next"}, "page"),
        ({"start_time": "9", "page": "page_AAAA"}, "page"), ({"start_time": "9", "color": "red"}, "color"),
        ({"start_time": "9", "batch": "maybe"}, "batch"), ({"start_time": "9", "inferbus_tags": "a"}, "inferbus_tags"),
        ({"start_time": "9", "line_items[]": "x"}, "line_items[]"),
    ],
)  # fmt: skip
def test_a_query_that_says_nothing_is_refused_by_name(query: dict[str, str], param: str) -> None:
    with pytest.raises(InferBusError) as refused:
        usage_asked(COMPLETIONS, list(query.items()), NOW)
    assert refused.value.param == param


# --- whose -----------------------------------------------------------------------------------------------------------

OWNERS = {"k1": "ada", "k2": "bob", "k3": "ada", "k4": ""}


def test_a_filter_is_within_the_tenant_and_never_widens() -> None:
    query = [("start_time", "0"), ("project_ids[]", "p"), ("models", "m"), ("api_key_ids[]", "k1"),
             ("api_key_ids[]", "theirs"), ("user_ids[]", "ada"), ("batch", "false")]  # fmt: skip
    asked = usage_asked(COMPLETIONS, query, NOW)
    only = asked.limited_to("acme", OWNERS)
    assert only == UsageFilter(
        tenant_id="acme", project_ids=["p"], key_ids=["k1"], models=["m"], batch=False,
        operations=COMPLETIONS.operations,
    )  # fmt: skip
    assert asked.limited_to("", OWNERS) is None
    for user in ("nobody", "bob"):
        query[5] = ("user_ids[]", user)
        assert usage_asked(COMPLETIONS, query, NOW).limited_to("acme", OWNERS) is None


# --- results ----------------------------------------------------------------------------------------------------------

rows = st.lists(
    st.builds(
        UsageBucket,
        group=st.builds(
            UsageGroup, key_id=st.sampled_from([*OWNERS, "gone"]),
            priority_class=st.sampled_from(PriorityClass.values()),
            tags=st.sampled_from([{}, {"b": "2", "a": "1"}, {"a": "1", "b": "2"}]),
        ),
        estimated=st.booleans(), requests=st.integers(0, 9), input_tokens=st.integers(5, 9),
        cached_input_tokens=st.integers(0, 5), output_tokens=st.integers(0, 9),
    ),
    max_size=12,
)  # fmt: skip


@given(rows, st.sets(st.sampled_from(["user_id", "api_key_id", "batch", "service_tier", "inferbus_tags"])))
def test_results_are_the_rows_summed_by_what_was_asked_for(given_rows: list[UsageBucket], groups: set[str]) -> None:
    asked = usage_asked(COMPLETIONS, [("start_time", "0"), *(("group_by[]", one) for one in groups)], NOW)
    wanted: dict[Any, int] = defaultdict(int)
    for row in given_rows:
        batch = row.group.priority_class == PriorityClass.PRIORITY_CLASS_BATCH
        flex = row.group.priority_class == PriorityClass.PRIORITY_CLASS_BACKGROUND
        said = {
            "user_id": OWNERS.get(row.group.key_id) or None, "api_key_id": row.group.key_id, "batch": batch,
            "service_tier": "batch" if batch else "flex" if flex else "default", "inferbus_tags": dict(row.group.tags),
        }  # fmt: skip
        values = {name: value if name in groups else None for name, value in said.items()}
        wanted[json.dumps([values, row.estimated], sort_keys=True)] += row.input_tokens
    found = usage_results(COMPLETIONS, asked, given_rows, OWNERS).get(0, [])
    names = ("user_id", "api_key_id", "batch", "service_tier", "inferbus_tags")
    shown = [
        (json.dumps([{name: one[name] for name in names}, one["inferbus_estimated"]], sort_keys=True), one)
        for one in found
    ]
    assert {key: one["input_tokens"] for key, one in shown} == wanted
    assert len(shown) == len(wanted)
    for one in found:
        assert one["input_cached_tokens"] + one["input_uncached_tokens"] == one["input_tokens"]
        assert one["model"] is one["project_id"] is None


def test_an_amount_is_a_number_with_all_of_its_digits() -> None:
    lines = (("m, input_tokens", "0.000000000001", 7), ("m, calls", "123456789012345678.000000000001", None))
    buckets = [
        CostBucket(line_item=name, amount=amount, currency="USD", quantity=quantity) for name, amount, quantity in lines
    ]
    whole = cost_results(costs_asked([("start_time", "0")], NOW), buckets, {})[0]
    text = orjson.dumps(whole)
    assert json.loads(text, parse_float=Decimal)[0]["amount"] == {
        "value": Decimal("123456789012345678.000000000002"), "currency": "usd"
    }  # fmt: skip
    split = costs_asked([("start_time", "0"), ("group_by[]", "line_item"), ("line_items[]", "m, input_tokens")], NOW)
    (one,) = cost_results(split, buckets, {})[0]
    assert (one["line_item"], one["quantity"], one["quantity_unit"]) == ("m, input_tokens", 7, "tokens")
    assert b'"value":0.000000000001' in orjson.dumps(one)


# --- the operator's query ---------------------------------------------------------------------------------------------


def test_the_operators_query() -> None:
    query = [("start", "2026-01-01"), ("bucket", "day"), ("tenant", "acme"), ("project", "p"), ("tag", "team=a=b"),
             ("by", "project, tags"), ("by", "project")]  # fmt: skip
    assert dimensions_of(query) == ["DIMENSION_PROJECT", "DIMENSION_TAGS"]
    asked = report_of(query, "by")
    assert (asked["start_time"], asked["bucket_width"]) == ("2026-01-01", "BUCKET_WIDTH_DAY")
    assert asked["filter"]["tags"] == {"team": "a=b"}
    assert (asked["filter"]["tenant_id"], asked["filter"]["project_ids"]) == ("acme", ["p"])
    for name, value in (("tag", "team"), ("bucket", "week"), ("colour", "red")):
        with pytest.raises(InferBusError) as refused:
            report_of([(name, value)], "by")
        assert refused.value.param == name
    with pytest.raises(InferBusError, match="not 'colour'"):
        dimensions_of([("by", "colour")])


def test_a_tag_is_asked_for_with_one_value() -> None:
    """With two it would depend on the order in which they are looked at which one counts."""
    with pytest.raises(InferBusError, match="each NAME once"):
        report_of([("tag", "team=a"), ("tag", "team=b")])
    with pytest.raises(InferBusError, match="each NAME once"):
        usage_asked(KINDS[0], [("start_time", "9"), ("inferbus_tags[]", "team=a"), ("inferbus_tags[]", "team=b")], 99)


# --- labels -----------------------------------------------------------------------------------------------------------


def test_tags_are_few_and_short() -> None:
    assert tags_of(" team=search, env = prod=1 ,") == {"team": "search", "env": "prod=1"}
    assert tags_of("") == {}
    for text in (
        "team", "=x", "team=", "a b=c", "a=1,a=2", f"{'n' * 33}=x", f"n={'v' * 65}", "n=a\tb", "n=\udcff",
        ",".join(f"n{number}=x" for number in range(9)),
    ):  # fmt: skip
        with pytest.raises(InferBusError) as refused:
            tags_of(text)
        assert refused.value.param == "x-inferbus-tags"


@given(st.text(max_size=300), st.text(max_size=300))
def test_an_end_user_is_kept_within_its_bound_and_apart_from_others(one: str, other: str) -> None:
    assert len(end_user_of(one).encode()) <= 128
    assert (end_user_of(one) == end_user_of(other)) == (one == other)
    assert end_user_of(None, "", one) == end_user_of(one)
    # Nobody can call himself what stands in the place of who was erased.
    assert end_user_of(ERASED) != ERASED
    assert (labels_of(end_user_of(one), {}) is None) == (one == "")


@pytest.mark.parametrize(
    ("fields", "end_user"), [({}, ""), ({"user": "u"}, "u"), ({"user": "u", "safety_identifier": "s"}, "s")]
)
def test_who_asked_is_in_the_plan_of_every_api(fields: dict[str, str], end_user: str) -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    assert plan_chat(parse_chat_request(orjson.dumps(chat))).end_user == end_user
    responses = parse_responses_request(orjson.dumps({"model": "m", "input": "x", **fields}))
    assert plan_responses(responses, items_of(responses.input)).end_user == end_user
    user = {"user": end_user} if end_user else {}
    completion = parse_completion_request(orjson.dumps({"model": "m", "prompt": "x", **user}))
    assert plan_completion(completion).end_user == end_user
    vectors = parse_embedding_request(orjson.dumps({"model": "m", "input": "x", **user}))
    assert plan_embeddings(vectors).end_user == end_user
    named = {"metadata": {"user_id": end_user}} if end_user else {}
    message = {"model": "m", "max_tokens": 5, "messages": chat["messages"], **named}
    assert plan_message(parse(MessageRequest, orjson.dumps(message))).end_user == end_user
