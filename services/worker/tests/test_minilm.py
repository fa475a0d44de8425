"""The embedding engine: its model against published vectors, its promises, and the choice of batches."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError
from inferbus_worker.config import Config
from inferbus_worker.engine import (
    Chat,
    Embed,
    EngineDiedError,
    Finish,
    Finished,
    Generation,
    Message,
    Prompt,
    Source,
    Step,
)
from inferbus_worker.engines import minilm_model
from inferbus_worker.engines.minilm import MiniLm
from inferbus_worker.engines.minilm_batches import BATCH_TOKENS, Input, batch_bound, next_batch, queue_of
from inferbus_worker.engines.minilm_bert import gelu
from inferbus_worker.engines.minilm_model import Model

SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]


@pytest.fixture(scope="module")
def model() -> Model:
    return minilm_model.load()


def vectors_of(model: Model, texts: list[str]) -> np.ndarray:
    return model.embed([model.tokenize(text) for text in texts])


# --- the model --------------------------------------------------------------------------------------------------------


def test_similarities_are_those_of_sentence_transformers(model: Model) -> None:
    """The figures on the usage page of sbert.net for this model."""
    vectors = vectors_of(model, SENTENCES)
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    assert np.abs(vectors @ vectors.T - published).max() < 1e-4


def test_values_are_those_of_the_reference(model: Model) -> None:
    """The vector of this text in the tests of qdrant/fastembed, which runs the model's published ONNX file."""
    [vector] = vectors_of(model, ["hello world"])
    assert np.abs(vector[:5] - [-0.034478, 0.03102, 0.00673, 0.02611, -0.039362]).max() < 1e-5


def test_values_before_normalisation_have_the_ratio_of_the_reference(model: Model) -> None:
    """What PyTorch prints for this text in issue 23 of ToluClassics/mlx-transformers, there not brought to length 1."""
    [vector] = vectors_of(model, ["Each sentence is converted"])
    published = [5.41010201e-01, 6.43181562e-01, 3.37639935e-02]
    ratios = vector[:3] / np.array(published)
    assert np.ptp(ratios) / ratios[0] < 1e-4


def test_vectors_have_length_one(model: Model) -> None:
    vectors = vectors_of(model, [*SENTENCES, "", "a " * 254, "ein Fluß, 東京, 🙂"])
    assert vectors.shape == (6, 384)
    assert vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1).max() < 1e-6


def test_a_vector_does_not_depend_on_its_neighbours(model: Model) -> None:
    texts = [" ".join(["the", "river", "runs", "north"][: n % 4 + 1] * (n + 1)) for n in range(0, 60, 7)]
    together = vectors_of(model, texts)
    for text, vector in zip(texts, together, strict=True):
        assert np.abs(vectors_of(model, [text])[0] - vector).max() < 1e-5


def test_the_same_call_gives_the_same_bits(model: Model) -> None:
    assert np.array_equal(vectors_of(model, SENTENCES), vectors_of(model, SENTENCES))


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("How do I reset my password?", "I forgot my login credentials", "The recipe needs two eggs"),
        ("A dog runs through the park", "A puppy is playing outside", "Interest rates were raised again"),
        ("The bank raised interest rates", "Central bankers tightened monetary policy", "We sat on the river bank"),
    ],
)
def test_what_is_related_is_nearer(model: Model, text: str, near: str, far: str) -> None:
    vectors = vectors_of(model, [text, near, far])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1


def test_word_order_and_place_matter(model: Model) -> None:
    vectors = vectors_of(model, ["the dog bites the man", "the man bites the dog"])
    assert vectors[0] @ vectors[1] < 0.999


def test_gelu_is_the_exact_one() -> None:
    x = np.linspace(-9, 9, 40_003, dtype=np.float32).reshape(1, -1).repeat(33, axis=0)
    exact = [value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x[0].tolist()]
    gelu(x)
    assert np.abs(x - np.array(exact)).max() < 2e-6


def test_tokens_are_those_of_bert(model: Model) -> None:
    assert model.tokenize("Hello, unaffable world!") == [101, 7592, 1010, 14477, 20961, 3468, 2088, 999, 102]
    assert model.pieces([101, 14477, 20961]) == ["[CLS]", "una", "##ffa"]
    assert model.detokenize([101, 7592, 1010, 14477, 20961, 3468, 102]) == "[CLS] hello, unaffable [SEP]"


def test_a_text_is_never_cut_nor_padded(model: Model) -> None:
    assert len(model.tokenize("river " * 700)) == 702
    assert len(model.tokenize("river")) == 3


def test_a_special_token_in_a_text_can_be_read_as_text(model: Model) -> None:
    assert model.tokenize("a [SEP]").count(102) == 2
    assert model.tokenize("a [SEP]", parse_special=False).count(102) == 1


def test_a_matrix_product_has_one_thread() -> None:
    assert minilm_model.limit_blas() == 1


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm_model, "PACKAGE", "a-package-that-nobody-has")
    with pytest.raises(InferBusError) as caught:
        minilm_model.load()
    assert caught.value.reason == "model_missing"
    assert "a-package-that-nobody-has" in caught.value.diagnostic
    assert "package" not in caught.value.message


# --- batches ----------------------------------------------------------------------------------------------------------

LENGTHS = st.lists(st.lists(st.integers(1, 256), min_size=1, max_size=12), min_size=1, max_size=8)


def queues_of(lengths: list[list[int]]) -> deque[deque[Input]]:
    return deque(
        queue_of(number.to_bytes(16, "big"), [[7] * length for length in own]) for number, own in enumerate(lengths)
    )


def names(inputs: list[Input]) -> list[tuple[bytes, int]]:
    return [(one.key, one.index) for one in inputs]


@given(LENGTHS, st.integers(64, 300))
def test_each_input_is_in_one_batch_and_each_batch_within_its_bound(lengths: list[list[int]], bound: int) -> None:
    queues, taken = queues_of(lengths), []
    while queues:
        batch = next_batch(queues, bound)
        sizes = [len(one.ids) for one in batch]
        assert len(batch) == 1 or len(batch) * max(sizes) <= bound
        assert max(sizes) <= 2 * min(sizes)
        assert all(queues)
        taken += batch
    expected = {(number.to_bytes(16, "big"), i) for number, own in enumerate(lengths) for i in range(len(own))}
    assert len(taken) == len(expected)
    assert set(names(taken)) == expected
    for one in taken:
        assert len(one.ids) == lengths[int.from_bytes(one.key, "big")][one.index]


@given(LENGTHS, st.integers(64, 300))
def test_every_generation_has_its_turn(lengths: list[list[int]], bound: int) -> None:
    queues = queues_of(lengths)
    served: set[bytes] = set()
    for _ in range(len(lengths)):
        if queues:
            served |= {one.key for one in next_batch(queues, bound)}
    assert len(served) == len(lengths)


@given(LENGTHS, st.integers(1, 8))
def test_little_work_is_split_over_the_threads(lengths: list[list[int]], threads: int) -> None:
    total = sum(sum(own) for own in lengths)
    bound = batch_bound(queues_of(lengths), threads)
    assert 64 <= bound <= BATCH_TOKENS
    assert bound == BATCH_TOKENS or bound * threads >= total
    assert bound == 64 or (bound - 1) * threads < total or total >= threads * BATCH_TOKENS


# --- the engine -------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    key: bytes
    vectors: dict[int, np.ndarray] = field(default_factory=dict)
    end: Finished | None = None


class Driver:
    """Reads the engine's steps, unless held, and checks what holds for each."""

    def __init__(self, engine: MiniLm) -> None:
        self.engine = engine
        self.answers: dict[bytes, Answer] = {}
        self.ended: list[Answer] = []
        self.may_read = asyncio.Event()
        self.may_read.set()
        self._moved = asyncio.Condition()

    async def start(self) -> None:
        self.info = await self.engine.start()
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for step in self.engine.steps():
            self._take(step)
            async with self._moved:
                self._moved.notify_all()
            await self.may_read.wait()

    def _take(self, step: Step) -> None:
        assert not step.keys
        assert sum(len(vector.values) for vector in step.embeddings) <= 512 * 1024
        assert step.embeddings or step.finished
        for vector in step.embeddings:
            answer = self.answers[vector.key]
            assert answer.end is None, "nothing may follow the end"
            assert vector.index not in answer.vectors, "each once"
            answer.vectors[vector.index] = np.frombuffer(vector.values, "<f4")
        for finished in step.finished:
            answer = self.answers[finished.key]
            assert answer.end is None, "one end"
            assert (finished.error is not None) == (finished.reason is Finish.ERROR)
            answer.end = finished
            self.ended.append(answer)

    def submit(self, *inputs: str | tuple[int, ...]) -> Answer:
        return self.submit_input(Embed(tuple(Prompt(one) for one in inputs)))

    def submit_input(self, source: Source) -> Answer:
        answer = Answer((len(self.answers) + 1).to_bytes(16, "big"))
        self.answers[answer.key] = answer
        self.engine.submit(Generation(answer.key, source))
        return answer

    async def until_ended(self, *answers: Answer) -> None:
        async with asyncio.timeout(60), self._moved:
            while not all(answer.end is not None for answer in answers):
                await self._moved.wait()

    async def ask(self, *inputs: str | tuple[int, ...]) -> Answer:
        answer = self.submit(*inputs)
        await self.until_ended(answer)
        return answer

    async def stop(self) -> None:
        await self.engine.stop()
        await asyncio.wait_for(self.reader, 60)


def engine_of(**changes: object) -> MiniLm:
    return MiniLm.from_config(Config.model_validate({"name": "minilm", "threads": 2, **changes}))


@pytest.fixture
async def driver() -> AsyncIterator[Driver]:
    driver = Driver(engine_of())
    await driver.start()
    yield driver
    await driver.stop()


async def test_info_says_what_runs(driver: Driver) -> None:
    info = driver.info
    assert (info.engine, info.model, info.context_length) == ("minilm", "all-minilm-l6-v2", 256)
    assert info.capabilities == ("embeddings",)
    assert info.embedding_dimensions == 384
    assert len(info.revision) == 12


async def test_a_generation_ends_with_its_vectors_and_its_tokens(driver: Driver, model: Model) -> None:
    answer = await driver.ask(*SENTENCES)
    assert sorted(answer.vectors) == [0, 1, 2]
    expected = vectors_of(model, SENTENCES)
    for index, vector in answer.vectors.items():
        assert np.abs(vector - expected[index]).max() < 1e-5
    assert answer.end.reason is Finish.STOP
    assert answer.end.input_tokens == sum(len(model.tokenize(text)) for text in SENTENCES)


async def test_token_ids_are_taken_as_they_are(driver: Driver, model: Model) -> None:
    ids = tuple(model.tokenize("hello world"))
    answer = await driver.ask(ids, "hello world")
    assert np.abs(answer.vectors[0] - answer.vectors[1]).max() < 1e-5
    assert answer.end.input_tokens == 2 * len(ids)


async def test_many_generations_share_batches_and_keep_their_own(driver: Driver, model: Model) -> None:
    texts = [f"number {n} of many " + "and more " * (n % 11) for n in range(90)]
    answers = [driver.submit(*texts[n : n + 3]) for n in range(0, 90, 3)]
    await driver.until_ended(*answers)
    got = np.stack([answer.vectors[index] for answer in answers for index in range(3)])
    expected = np.concatenate([vectors_of(model, [text]) for text in texts])
    assert np.abs(got - expected).max() < 1e-5


async def test_one_text_does_not_wait_for_thousands(driver: Driver) -> None:
    many = driver.submit(*[f"text {n} " + "of a large batch " * 8 for n in range(2000)])
    while not many.vectors:
        await asyncio.sleep(0.01)
    await driver.ask("hello world")
    assert many.end is None
    assert len(many.vectors) < 1000
    driver.engine.close(many.key)
    await driver.until_ended(many)


async def test_close_ends_at_once_and_counts_what_was_done(driver: Driver, model: Model) -> None:
    texts = [f"text {n} " + "of a large batch " * 8 for n in range(2000)]
    answer = driver.submit(*texts)
    while len(answer.vectors) < 10:
        await asyncio.sleep(0.01)
    driver.engine.close(answer.key)
    await driver.until_ended(answer)
    assert answer.end.reason is Finish.CANCELLED
    assert len(answer.vectors) < 2000
    assert answer.end.input_tokens == sum(len(model.tokenize(texts[index])) for index in answer.vectors)
    driver.engine.close(answer.key)  # ended: nothing happens
    assert (await driver.ask("hello")).end.reason is Finish.STOP


async def test_close_while_the_tokenizer_runs_or_the_engine_is_full() -> None:
    driver = Driver(engine_of(capacity=1))
    await driver.start()
    first, second, third = driver.submit("one"), driver.submit("two"), driver.submit("three")
    driver.engine.close(first.key)
    driver.engine.close(third.key)
    await driver.until_ended(first, second, third)
    assert [answer.end.reason for answer in (first, second, third)] == [
        Finish.CANCELLED, Finish.STOP, Finish.CANCELLED,
    ]  # fmt: skip
    assert (first.end.input_tokens, third.end.input_tokens) == (0, 0)
    await driver.stop()


async def test_what_does_not_fit_at_once_waits_in_order() -> None:
    driver = Driver(engine_of(capacity=1))
    await driver.start()
    answers = [driver.submit(f"text {n}") for n in range(12)]
    await driver.until_ended(*answers)
    assert driver.ended == answers
    await driver.stop()


async def test_a_long_input_is_refused_with_its_tokens(driver: Driver) -> None:
    fits = await driver.ask("river " * 254)
    assert fits.end.reason is Finish.STOP
    assert fits.end.input_tokens == 256
    answer = await driver.ask("short", "river " * 255)
    error = answer.end.error
    assert (error.reason, error.param) == ("context_length_exceeded", "input")
    assert error.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT
    assert "Input 1 has 257 tokens" in error.message
    assert "256" in error.message
    assert not answer.vectors
    assert answer.end.input_tokens == 0


async def test_a_smaller_context_can_be_set() -> None:
    driver = Driver(engine_of(context_length=128))
    await driver.start()
    assert driver.info.context_length == 128
    assert (await driver.ask("river " * 126)).end.reason is Finish.STOP
    assert (await driver.ask("river " * 127)).end.error.reason == "context_length_exceeded"
    await driver.stop()


@pytest.mark.parametrize(
    ("source", "param", "says"),
    [
        (Embed(()), "input", "at least one input"),
        (Embed((Prompt("good"), Prompt(()))), "input", "Input 1 has no tokens"),
        (Embed((Prompt((101, 30522, 102)),)), "input", "0 to 30521"),
        (Embed((Prompt((101, -1)),)), "input", "0 to 30521"),
        (Chat((Message("user", "hi"),)), "model", "embeddings"),
        (Prompt("once upon a time"), "model", "embeddings"),
    ],
)
async def test_what_cannot_become_vectors_is_refused(driver: Driver, source: Source, param: str, says: str) -> None:
    answer = driver.submit_input(source)
    await driver.until_ended(answer)
    assert answer.end.reason is Finish.ERROR
    assert answer.end.error.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT
    assert answer.end.error.param == param
    assert says in answer.end.error.message
    assert (await driver.ask("and the engine serves on")).end.reason is Finish.STOP


async def test_an_empty_text_has_a_vector(driver: Driver) -> None:
    answer = await driver.ask("")
    assert answer.end.input_tokens == 2
    assert np.isfinite(answer.vectors[0]).all()


async def test_the_model_pauses_when_nobody_takes_its_vectors(driver: Driver) -> None:
    driver.may_read.clear()
    answer = driver.submit(*["word"] * 2500)
    async with asyncio.timeout(60):
        while driver.engine._outbox.room.is_set():
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)
    assert len(driver.engine._outbox._vectors) < 1400, "the batches under way, and no more"
    assert answer.end is None
    driver.may_read.set()
    await driver.until_ended(answer)
    assert len(answer.vectors) == 2500


async def test_the_event_loop_stays_free(driver: Driver) -> None:
    """The model runs elsewhere: while it works on a long batch, the loop turns many times."""
    answer = driver.submit(*["river " * 250] * 12)
    turns = 0
    while answer.end is None:
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 50


async def test_tokenize_and_back(driver: Driver) -> None:
    tokens = await driver.engine.tokenize(Prompt("Unaffable [SEP]"), parse_special=False, open_turn=False)
    assert tokens.pieces == [b"[CLS]", b"una", b"##ffa", b"##ble", b"[", b"sep", b"]", b"[SEP]"]
    assert await driver.engine.detokenize(tokens.ids[1:4]) == b"unaffable"
    special = await driver.engine.tokenize(Prompt("a [SEP]"), open_turn=False)
    assert special.ids.count(102) == 2
    bare = await driver.engine.tokenize(Prompt("a [SEP]"), add_special=False)
    assert bare.pieces == [b"a", b"[SEP]"]
    with pytest.raises(InferBusError, match="vectors"):
        await driver.engine.tokenize(Chat((Message("user", "hi"),)), parse_special=True, open_turn=True)
    with pytest.raises(InferBusError, match="30521"):
        await driver.engine.detokenize([30522])


async def test_stop_start_and_stop_twice() -> None:
    driver = Driver(engine_of())
    await driver.engine.stop()
    await driver.start()
    first = await driver.ask("hello world")
    driver.submit(*["river " * 200] * 50)
    await driver.stop()
    await driver.stop()
    await driver.start()
    again = await driver.ask("hello world")
    assert np.array_equal(first.vectors[0], again.vectors[0])
    await driver.stop()


async def test_a_failing_model_ends_the_generation_and_shows_nothing_of_it() -> None:
    driver = Driver(engine_of())
    await driver.start()
    driver.engine._pools[1].shutdown()
    answer = await driver.ask("hello world")
    assert answer.end.error.reason == "engine_failed"
    assert "shutdown" in answer.end.error.diagnostic
    assert "shutdown" not in answer.end.error.message
    await driver.stop()


async def test_a_fault_of_the_engine_itself_is_its_death_and_a_new_start_works() -> None:
    driver = Driver(engine_of())
    await driver.start()
    driver.engine._queues.append(deque())  # an empty queue: no batch can be made of it
    answer = driver.submit("hello world")
    with pytest.raises(EngineDiedError):
        await asyncio.wait_for(driver.reader, 60)
    assert answer.end is None
    await driver.engine.stop()
    await driver.start()
    assert (await driver.ask("hello world")).end.reason is Finish.STOP
    await driver.stop()
