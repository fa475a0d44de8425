"""Properties of the administration's pure parts."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.bus.v1.registry_pb2 import KeyRecord, Limits
from inferbus.edge.v1.edge_pb2 import Key
from inferbus_edge.core.organization import NO_LIMIT_REQUESTS, Listing, PageQuery, page, rate_limit_object
from inferbus_edge.core.organization_audit import AuditPage, AuditQuery, Change, audit_object, event_of
from inferbus_edge.core.organization_bodies import LIMIT_FIELDS, audit_query, expiry, with_limits
from inferbus_edge.core.organization_rules import allows, checked_id, expired, revoked, with_changes
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


@pytest.mark.parametrize("value", ["", "a/b", " a", "a\n", "a" * 201])
def test_bad_ids(value: str) -> None:
    with pytest.raises(InferBusError):
        checked_id(value, "tenant_id")


@given(st.integers(0, 10**10), st.integers(0, 10**10), st.integers(0, 10**10))
def test_a_range_of_time(at: int, low: int, high: int) -> None:
    def wants(**bounds: int) -> bool:
        query, _ = audit_query([(f"effective_at[{name}]", str(value)) for name, value in bounds.items()])
        return query.wants(AuditEvent(event_time={"seconds": at}), "")

    assert wants(gte=low, lte=high) is (low <= at <= high)
    assert wants(gt=low, lt=high) is (low < at < high)
    assert wants() is True
