"""Properties of the administration's pure parts."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.bus.v1.registry_pb2 import KeyRecord, Limits
from inferbus.edge.v1.edge_pb2 import Key
from inferbus_contracts.keys import expired, revoked
from inferbus_contracts.subjects import subject_token
from inferbus_edge.core.organization import NO_LIMIT_REQUESTS, Listing, PageQuery, page, rate_limit_object
from inferbus_edge.core.organization_audit import (
    MAX_DETAILS_BYTES,
    AuditPage,
    AuditQuery,
    Change,
    audit_object,
    event_of,
)
from inferbus_edge.core.organization_bodies import LIMIT_FIELDS, audit_query, expiry, with_limits
from inferbus_edge.core.organization_room import MAX_RECORD_BYTES, Room
from inferbus_edge.core.organization_rules import (
    MAX_MODELS,
    MAX_MODELS_BYTES,
    allows,
    checked_id,
    checked_models,
    with_changes,
)
from inferbus_runtime.errors import InferBusError

names = st.lists(st.integers(0, 10_000).map(str), unique=True, max_size=40)
texts = st.text(min_size=1, max_size=8)


@given(names, st.sets(st.integers(0, 39)), st.integers(1, 7))
def test_pages_give_every_shown_item_once_and_in_order(items: list[str], hidden: set[int], limit: int) -> None:
    shown = [item for at, item in enumerate(items) if at not in hidden]
    listing = Listing(items, str, lambda item: {"id": item}, lambda item: item in shown)
    found: list[str] = []
    query, more = PageQuery(limit), True
    while more:
        part = page(listing, query)
        found += [one["id"] for one in part["data"]]
        more = part["has_more"]
        assert len(part["data"]) == limit or not more
        query = PageQuery(limit, part["last_id"] or "")
    assert found == shown


def test_an_unknown_cursor_is_refused() -> None:
    with pytest.raises(InferBusError, match="after"):
        page(Listing(["a"], str, lambda item: {"id": item}), PageQuery(after="b"))


def log_of(count: int) -> list[AuditEvent]:
    return [AuditEvent(event_id=f"e{at}", event_time={"seconds": at}, target=f"t{at % 3}") for at in range(count)]


def read(events: list[AuditEvent], query: AuditQuery) -> tuple[list[str], bool]:
    result = AuditPage(query, lambda key: "")
    for event in events:
        if not result.take(event):
            break
    found, more = result.result()
    return [event.event_id for event in found], more


@given(st.integers(0, 60), st.integers(1, 9), st.frozensets(st.sampled_from(["t0", "t1", "t2"])))
def test_audit_pages_go_back_to_the_first_and_forth_again(count: int, limit: int, targets: frozenset[str]) -> None:
    events = log_of(count)
    wanted = [one.event_id for one in reversed(events) if not targets or one.target in targets]
    found, more = read(events, AuditQuery(limit, targets=targets))
    back = list(found)
    while more:
        found, more = read(events, AuditQuery(limit, after=back[-1], targets=targets))
        assert 0 < len(found) <= limit
        back += found
    assert back == wanted
    for at, name in enumerate(wanted):
        newer, more = read(events, AuditQuery(limit, before=name, targets=targets))
        assert newer == wanted[max(0, at - limit) : at]
        assert more == (at > limit)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 59), st.integers(0, 59))
def test_reading_less_of_the_log_is_enough_once_a_page_is_complete(
    count: int, limit: int, start: int, cursor: int
) -> None:
    """What :class:`AuditLog` relies on when it reads the newest part first."""
    events = log_of(count)
    for query in (AuditQuery(limit), AuditQuery(limit, after=f"e{cursor}"), AuditQuery(limit, before=f"e{cursor}")):
        part = AuditPage(query, lambda key: "")
        for event in events[start:]:
            if not part.take(event):
                break
        if part.complete:
            assert [one.event_id for one in part.result()[0]] == read(events, query)[0]


@given(texts, texts, texts, st.integers(0, 5), st.dictionaries(texts, texts, max_size=2))
def test_an_event_s_id_names_the_change(action: str, actor: str, target: str, revision: int, details: Any) -> None:
    change = Change(action, actor, "tenant", target, details=details)
    event = event_of(change, revision)
    assert event == event_of(change, revision)
    others = [
        event_of(change, revision + 1),
        event_of(Change(action, actor + "x", "tenant", target, details=details), revision),
        event_of(Change(action, actor, "tenant", target, "project", details), revision),
        event_of(Change(action, actor, "tenant", target, details={**details, "one more": 1}), revision),
    ]
    assert event.event_id not in {other.event_id for other in others}


@pytest.mark.parametrize(
    ("action", "kind", "payload"),
    [
        ("key.created", "api_key.created", {"id": "x", "data": {"scopes": ["inference"]}}),
        ("key.rotated", "api_key.updated", {"id": "x", "changes_requested": {"scopes": ["inference"]}}),
        ("key.revoked", "api_key.deleted", {"id": "x"}), ("project.archived", "project.archived", {"id": "x"}),
        ("tenant.archived", "tenant.archived", {"id": "x"}),
    ],
)  # fmt: skip
def test_entries_have_openai_s_types(action: str, kind: str, payload: Any) -> None:
    details = orjson.dumps({"scopes": ["inference"]}).decode()
    shown = audit_object(AuditEvent(action=action, target="x", details=details), None, "")
    assert (shown["type"], shown[kind]) == (kind, payload)
    assert "project" not in shown


limit_values = st.one_of(st.none(), st.integers(1, 1000))


@given(limit_values, limit_values, limit_values)
def test_limits_that_are_shown_can_be_sent_back(requests: Any, tokens: Any, concurrent: Any) -> None:
    limits = Limits(requests_per_minute=requests, tokens_per_minute=tokens, concurrent_requests=concurrent)
    shown = rate_limit_object(limits)
    assert with_limits(Limits(), {name: shown[name] for name in LIMIT_FIELDS}) == limits
    assert with_limits(limits, {}) == limits
    assert with_limits(limits, dict.fromkeys(LIMIT_FIELDS)) == Limits()


@pytest.mark.parametrize("value", [-1, 1.5, "60", True, NO_LIMIT_REQUESTS + 1])
def test_a_bad_limit(value: Any) -> None:
    with pytest.raises(InferBusError):
        with_limits(Limits(), {"max_requests_per_1_minute": value})


@given(st.integers(1, 2**40), st.integers(0, 2**50))
def test_a_key_ends_no_earlier_than_asked(lifetime: int, now_us: int) -> None:
    end = expiry({"expires_in_seconds": lifetime}, now_us) if now_us / 1e6 + lifetime < 2e11 else None
    if end is not None:
        assert 0 <= end.seconds * 1_000_000 - now_us - lifetime * 1_000_000 < 1_000_000


@given(st.integers(0, 2**50), st.integers(-5, 5))
def test_a_key_ends_at_its_time(now_us: int, delta: int) -> None:
    at = max(0, now_us + delta)
    stamp = {"seconds": at // 1_000_000, "nanos": at % 1_000_000 * 1000}
    assert revoked(KeyRecord(revoke_time=stamp), now_us) is (at <= now_us)
    assert expired(KeyRecord(expire_time=stamp), now_us) is (at <= now_us)
    assert not revoked(KeyRecord(), now_us)
    assert not expired(KeyRecord(), now_us)


@given(st.lists(texts, max_size=4), texts)
def test_an_allow_list(models: list[str], model: str) -> None:
    assert allows(KeyRecord(models=models), model) is (model in models or not models)


@given(st.sets(st.sampled_from(["name", "models", "limits", "expire_time"])))
def test_a_change_touches_what_it_names_and_nothing_else(mask: set[str]) -> None:
    record = KeyRecord(
        key_id="k", name="old", models=["a"], limits=Limits(requests_per_minute=1), expire_time={"seconds": 5}
    )
    changed = with_changes(record, Key(name="new"), mask, ("name", "models", "limits", "expire_time"))
    assert (changed.key_id, record.name) == ("k", "old")
    assert changed.name == ("new" if "name" in mask else "old")
    assert list(changed.models) == ([] if "models" in mask else ["a"])
    assert changed.HasField("limits") is ("limits" not in mask)
    assert changed.HasField("expire_time") is ("expire_time" not in mask)
    with pytest.raises(InferBusError, match="key_id"):
        with_changes(record, Key(), ["key_id"], ("name",))


@pytest.mark.parametrize("value", ["", "a/b", " a", "a\n", "a" * 65, "ä", "..", ".a", "a b", "\U0001f600"])
def test_bad_ids(value: str) -> None:
    with pytest.raises(InferBusError) as refused:
        checked_id(value, "tenant_id")
    assert refused.value.param == "tenant_id"


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True))
def test_ids_fit_into_a_subject(value: str) -> None:
    """Two of them beside each other are far from the 4,096 bytes at which a broker ends the connection."""
    assert checked_id(value, "tenant_id") == value
    assert len(subject_token(f"{value}/{value}")) <= 400


@given(st.lists(st.text("ab\U0001f600", min_size=1, max_size=200), max_size=110))
def test_an_allow_list_is_bounded_in_names_and_bytes(models: list[str]) -> None:
    names = set(models)
    if len(models) <= MAX_MODELS and sum(len(name.encode()) for name in names) <= MAX_MODELS_BYTES:
        assert set(checked_models(models)) == names
    else:
        with pytest.raises(InferBusError, match="models"):
            checked_models(models)


def test_the_largest_key_has_room() -> None:
    """What each field may be by itself is possible in one record."""
    widest, now = "\U0001f600" * 200, {"seconds": 253_402_300_799, "nanos": 999_999_999}
    models = [f"{number:025d}" for number in range(MAX_MODELS)] + ["m" * (MAX_MODELS_BYTES - 25 * MAX_MODELS)]
    record = KeyRecord(
        key_id="key_" + "f" * 24, tenant_id="t" * 64, project_id="p" * 64, name=widest, prefix="ib-123456",
        scopes=["inference", "tenant_admin", "admin"], create_time=now, revoke_time=now, expire_time=now,
        models=checked_models(models[:MAX_MODELS]), owner_id="svc_acct_" + "f" * 24,
        limits=Limits(requests_per_minute=2**32 - 1, tokens_per_minute=2**53, concurrent_requests=2**32 - 1),
    )  # fmt: skip
    assert record.ByteSize() <= MAX_RECORD_BYTES


sizes = st.integers(0, 2000)


@given(sizes, st.integers(-500, 2000), sizes, sizes)
def test_who_may_add_to_a_bucket(size: int, growth: int, tenant: int, total: int) -> None:
    """What takes away always may; what adds passes neither the record's bound, nor the share, nor into the reserve."""
    reason = ""
    try:
        Room(bucket=2000, share=1000, record=500).check(size, growth, tenant, total)
    except InferBusError as error:
        reason = error.reason
    if growth <= 0:
        assert reason == ""
    elif size > 500:
        assert reason == "invalid_value"
    elif tenant + growth > 1000:
        assert reason == "too_many"
    else:
        assert reason == ("stream_full" if total + growth > 1800 else "")


@given(
    st.lists(st.text(max_size=200), max_size=100),
    st.text(max_size=200),
    st.lists(st.text(max_size=20), max_size=3),
)
def test_what_the_audit_log_tells_is_bounded(models: list[str], name: str, scopes: list[str]) -> None:
    details = {"models": models, "name": name, "title": name, "scopes": scopes}
    told = event_of(Change("key.updated", "key_1", "t", "key_2", details=details), 1).details
    assert len(told.encode()) <= MAX_DETAILS_BYTES
    shown = orjson.loads(told)
    if len(orjson.dumps(details, option=orjson.OPT_SORT_KEYS)) <= MAX_DETAILS_BYTES:
        assert shown == details
    else:
        assert any(isinstance(value, dict) and "sha256" in value for value in shown.values())
    if isinstance(shown["models"], dict):
        assert shown["models"]["count"] == len(models)


def test_two_long_lists_are_two_changes() -> None:
    """Also where the log tells only their hashes."""
    one, two = ([f"{letter * 50}-{number}" for number in range(60)] for letter in "ab")
    events = [event_of(Change("key.updated", "k", "t", "x", details={"models": models}), 1) for models in (one, two)]
    assert events[0].event_id != events[1].event_id
    assert events[0].details != events[1].details


@given(st.integers(0, 10**10), st.integers(0, 10**10), st.integers(0, 10**10))
def test_a_range_of_time(at: int, low: int, high: int) -> None:
    def wants(**bounds: int) -> bool:
        query, _ = audit_query([(f"effective_at[{name}]", str(value)) for name, value in bounds.items()])
        return query.wants(AuditEvent(event_time={"seconds": at}), "")

    assert wants(gte=low, lte=high) is (low <= at <= high)
    assert wants(gt=low, lt=high) is (low < at < high)
    assert wants() is True
