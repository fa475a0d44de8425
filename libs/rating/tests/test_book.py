"""Which price is in force: against a model that looks at every record."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.registry_pb2 import PriceRecord, PriceTier
from inferbus.common.v1.usage_pb2 import Operation, PriorityClass
from inferbus_rating import UNRATED, PriceBook, Rate, Scope
from inferbus_rating.book import price_of

CHAT, VECTORS = Operation.OPERATION_CHAT, Operation.OPERATION_EMBEDDINGS
INTERACTIVE, BATCH = PriorityClass.PRIORITY_CLASS_INTERACTIVE, PriorityClass.PRIORITY_CLASS_BATCH
SCOPE = Scope("acme", "p1", "m", "r1")


def price(version: str, at_us: int | None = None, made_us: int = 0, **fields: str) -> PriceRecord:
    record = PriceRecord(rate_version=version, currency="USD", **fields)  # type: ignore[arg-type]
    if at_us is not None:
        record.effective_time.FromMicroseconds(at_us)
    if made_us:
        record.create_time.FromMicroseconds(made_us)
    return record


def chat_rate(book: PriceBook, scope: Scope = SCOPE, at_us: int = 0) -> Rate:
    return book.rate_at(scope, CHAT, INTERACTIVE, at_us)


small = st.sampled_from(["", "a", "b"])
times = st.one_of(st.none(), st.integers(0, 4))


@st.composite
def books(draw: st.DrawFn) -> list[PriceRecord]:
    records = []
    for number in range(draw(st.integers(0, 12))):
        tenant, model = draw(small), draw(small)
        records.append(
            price(
                f"v{number:02}", draw(times), draw(st.integers(0, 3)), tenant_id=tenant, model=model,
                project_id=draw(small) if tenant else "", revision=draw(small) if model else "",
            )
        )  # fmt: skip
    return draw(st.permutations(records))


named = st.sampled_from(["a", "b"])


@given(books(), st.builds(Scope, named, named, named, named), st.integers(0, 5))
def test_the_most_specific_price_in_force_counts(records: list[PriceRecord], scope: Scope, at_us: int) -> None:
    def fits(record: PriceRecord) -> bool:
        wanted = ((record.tenant_id, scope.tenant_id), (record.project_id, scope.project_id),
                  (record.model, scope.model), (record.revision, scope.revision))  # fmt: skip
        return all(mine in ("", theirs) for mine, theirs in wanted) and since(record) <= at_us

    def since(record: PriceRecord) -> int:
        return record.effective_time.ToMicroseconds() if record.HasField("effective_time") else -1

    def rank(record: PriceRecord) -> tuple[object, ...]:
        owner = (record.project_id != "", record.tenant_id != "")
        model = (record.revision != "", record.model != "")
        return (*owner, *model, since(record), record.create_time.ToMicroseconds(), record.rate_version)

    best = max(filter(fits, records), key=rank, default=None)
    assert chat_rate(PriceBook.of(records), scope, at_us).version == (best.rate_version if best else "")


def test_a_price_changes_at_its_time_and_not_before() -> None:
    book = PriceBook.of([price("old", input_per_million="1"), price("new", 1000, input_per_million="2")])
    assert [chat_rate(book, at_us=at).version for at in (0, 999, 1000, 1001)] == ["old", "old", "new", "new"]


def test_a_correction_takes_effect_at_the_time_of_what_it_corrects() -> None:
    book = PriceBook.of([price("b-wrong", 1000, made_us=5), price("a-right", 1000, made_us=6)])
    assert chat_rate(book, at_us=1000).version == "a-right"


def test_what_is_not_said_costs_what_its_kin_costs() -> None:
    rate = chat_rate(PriceBook.of([price("v", input_per_million="0.15", output_per_million="0.6")]))
    assert rate.cached_input_per_million == rate.input_per_million == Decimal("0.15")
    assert rate.reasoning_per_million == rate.output_per_million == Decimal("0.6")
    assert (rate.per_call, rate.minimum, rate.factor) == (0, 0, 1)


def test_zero_is_an_amount_and_not_the_lack_of_one() -> None:
    given = price("v", input_per_million="1", output_per_million="1", cached_input_per_million="0",
                  reasoning_per_million="0", embedding_per_million="0", batch_factor="0")  # fmt: skip
    book = PriceBook.of([given])
    rate = book.rate_at(SCOPE, CHAT, BATCH, 0)
    assert (rate.cached_input_per_million, rate.reasoning_per_million, rate.factor) == (0, 0, 0)
    assert book.rate_at(SCOPE, VECTORS, INTERACTIVE, 0).input_per_million == 0


def test_the_batch_factor_is_for_the_class_batch_only() -> None:
    book = PriceBook.of([price("v", input_per_million="1", batch_factor="0.5")])
    assert chat_rate(book).factor == 1
    assert book.rate_at(SCOPE, CHAT, BATCH, 0).factor == Decimal("0.5")


def test_embeddings_have_a_price_of_their_own_if_there_is_one() -> None:
    book = PriceBook.of(
        [price("v", input_per_million="1", cached_input_per_million="0.5", embedding_per_million="0.1")]
    )
    rate = book.rate_at(SCOPE, VECTORS, INTERACTIVE, 0)
    assert rate.input_per_million == rate.cached_input_per_million == Decimal("0.1")
    assert chat_rate(book).input_per_million == 1


def test_records_of_before_versions_were_keys_still_work() -> None:
    book = PriceBook.of([price("default-1", model="default", input_per_million="1"), price("m-1", model="m")])
    assert chat_rate(book).version == "m-1"
    assert chat_rate(book, Scope("acme", "p1", "another", "")).version == "default-1"


def test_a_record_that_is_no_price_is_left_out_and_named() -> None:
    bad = price("bad", model="m", input_per_million="free")
    book = PriceBook.of([bad, price("good", input_per_million="1")])
    assert chat_rate(book).version == "good"
    assert [(record.rate_version, "input_per_million" in why) for record, why in book.faults] == [("bad", True)]


def test_an_empty_book_charges_nothing() -> None:
    assert chat_rate(PriceBook.of([])) == UNRATED


def test_prices_are_found_by_their_name() -> None:
    book = PriceBook.of([price("v1", model="a"), price("v1", model="b"), price("v2")])
    assert {found.scope.model for found in book.named("v1")} == {"a", "b"}
    assert book.named("v3") == ()


@pytest.mark.parametrize("text", ["a", "-1", "NaN", "Infinity", "0.0000000000001", "1e13"])
@pytest.mark.parametrize("field", ["input_per_million", "per_call", "minimum", "batch_factor", "reasoning_per_million"])
def test_what_is_no_amount_is_refused_by_its_field(text: str, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        price_of(price("v", **{field: text}))


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (price(""), "rate_version"),
        (PriceRecord(rate_version="v", input_per_million="1"), "currency"),
        (price("v", project_id="p"), "tenant_id"),
        (price("v", revision="r"), "model"),
        (price("v", revision="r", model="default"), "model"),
        (PriceRecord(rate_version="v", currency="USD", tiers=[PriceTier(above_tokens=5, factor="1")] * 2), "rise"),
        (PriceRecord(rate_version="v", currency="USD", tiers=[PriceTier(above_tokens=5, factor="1.1")]), "0 to 1"),
        (PriceRecord(rate_version="v", currency="USD", tiers=[PriceTier(above_tokens=5)]), "given"),
        (
            PriceRecord(rate_version="v", currency="USD", tiers=[PriceTier(above_tokens=5, factor="half")]),
            r"tiers\[0\]",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(record: PriceRecord, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        price_of(record)
