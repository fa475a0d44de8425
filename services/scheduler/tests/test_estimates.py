"""What is reckoned with before anybody has counted."""

from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.request_pb2 import ChatInput, ChatMessage, GenerateRequest, Resume, Sampling
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus_scheduler.core.estimates import UNKNOWN_TOKENS, OutputMeans
from inferbus_scheduler.incoming import input_tokens, request_of


def test_the_mean_of_a_model_is_learnt_from_what_it_answers_and_bounds_hold() -> None:
    means = OutputMeans()
    assert means.expected("m", None) == UNKNOWN_TOKENS
    assert means.expected("m", 5) == 5
    for _ in range(100):
        means.told("m", 300, 3)
    assert abs(means.expected("m", None) - 100) <= 1
    assert means.expected("m", 20) == 20
    for _ in range(2000):
        means.told("m", 40, 1)
    assert abs(means.expected("m", None) - 40) <= 2
    assert means.expected("other", None) == UNKNOWN_TOKENS


def test_means_are_kept_of_few_models() -> None:
    means = OutputMeans()
    for number in range(10_000):
        means.told(f"m{number}", 10, 1)
    assert len(means._sums) <= 4096


def test_texts_are_estimated_ids_are_counted_and_what_reads_no_prompt_is_nothing() -> None:
    chat = GenerateRequest(chat=ChatInput(messages=[ChatMessage(role="user", content="word " * 400)]))
    assert 480 < input_tokens(chat) < 560
    ids = GenerateRequest()
    ids.prompt.tokens.ids.extend(range(77))
    assert input_tokens(ids) == 77
    vectors = GenerateRequest()
    vectors.embedding.inputs.add(text="abcd" * 10)
    vectors.embedding.inputs.add().tokens.ids.extend(range(5))
    assert 14 <= input_tokens(vectors) <= 18
    assert input_tokens(GenerateRequest()) == 0


def test_a_request_that_comes_back_counts_what_it_has_and_waits_since_it_was_interrupted() -> None:
    message = GenerateRequest(
        request_id=b"r" * 16,
        context=RequestContext(model="m", tenant_id="t", project_id="p"),
        chat=ChatInput(messages=[ChatMessage(role="user", content="x" * 400)]),
        sampling=Sampling(max_tokens=50),
        accepted_time=Timestamp(seconds=1000),
        resume=Resume(
            attempt=3, token_ids=range(30), worker="w", fruitless_deaths=1, interrupted_time=Timestamp(seconds=1090)
        ),
    )
    request = request_of(message, OutputMeans(), now=500.0, now_us=1_100_000_000, max_wait=60.0)
    assert (request.attempt, request.resumed_tokens, request.avoid, request.suspect) == (3, 30, "w", True)
    assert 130 <= request.input_tokens <= 140
    assert request.output_tokens == 20
    assert (request.arrived_at, request.queued_at) == (400.0, 490.0)
    assert request.expires_at == 550.0
