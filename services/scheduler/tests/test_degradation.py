"""Which other model may answer a request, and when it is asked."""

from inferbus.bus.v1.request_pb2 import ChatInput, ChatMessage, Constraint, GenerateRequest, Resume, Sampling, Tool
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus_contracts.prefixes import prefix_of
from inferbus_scheduler.core.degradation import Needs, Option, expected_wait, fallback_of, left_of, needs_of
from inferbus_scheduler.core.deployments import Deployment
from inferbus_scheduler.fallbacks import sent_to

CHAT = frozenset(("chat",))
NOW = 0.0
NEVER = float("inf")


def chat(text: str = "hello", **fields: object) -> GenerateRequest:
    return GenerateRequest(
        context=RequestContext(model="large"),
        chat=ChatInput(messages=[ChatMessage(role="user", content=text)]),
        **fields,
    )


def option(model: str, *capabilities: str, context: int = 0, wait: float = NOW) -> Option:
    return Option(model, frozenset(capabilities or CHAT), context, wait)


def test_the_first_that_can_do_it_and_would_begin_sooner_is_asked() -> None:
    needs = needs_of(chat())
    assert needs is not None
    options = [option("vectors", "embeddings"), option("busy", wait=20.0), option("small"), option("other")]
    assert fallback_of(needs, CHAT, 10.0, options) == "small"
    assert fallback_of(needs, CHAT, 30.0, options) == "busy"
    assert fallback_of(needs, CHAT, 0.0, options) is None
    assert fallback_of(needs, CHAT, NEVER, [option("gone", wait=NEVER)]) is None


def test_a_fallback_must_be_able_to_do_all_that_is_asked() -> None:
    message = chat(sampling=Sampling(logprobs=2), constraint=Constraint(json_object=True))
    message.chat.tools.append(Tool(name="f"))
    needs = needs_of(message)
    assert needs is not None
    assert needs.capabilities == {"chat", "tools", "structured_output", "logprobs"}
    assert fallback_of(needs, CHAT, 9.0, [option("small")]) is None
    able = option("able", "chat", "tools", "structured_output", "logprobs", "embeddings")
    assert fallback_of(needs, CHAT, 9.0, [able]) == "able"


def test_a_fallback_must_have_room_for_input_and_output() -> None:
    needs = needs_of(chat("x" * 4000, sampling=Sampling(max_tokens=500)))
    assert needs is not None
    assert fallback_of(needs, CHAT, 9.0, [option("short", context=2048)]) is None
    assert fallback_of(needs, CHAT, 9.0, [option("long", context=4096)]) == "long"


def test_models_that_differ_in_reasoning_do_not_answer_for_each_other() -> None:
    needs = Needs(CHAT, 10)
    thinking = option("thinking", "chat", "reasoning")
    assert fallback_of(needs, CHAT, 9.0, [thinking]) is None
    assert fallback_of(needs, frozenset(("chat", "reasoning")), 9.0, [option("plain"), thinking]) == "thinking"


def test_what_only_its_own_model_can_go_on_with_stays() -> None:
    begun = chat(resume=Resume(attempt=2, token_ids=[1]))
    biased = chat(sampling=Sampling(logit_bias={5: 1.0}))
    ids, vectors, call = GenerateRequest(), GenerateRequest(), GenerateRequest()
    ids.prompt.tokens.ids.append(1)
    vectors.embedding.SetInParent()
    call.inference.SetInParent()
    assert [needs_of(each) for each in (begun, biased, ids, vectors, call)] == [None] * 5


def test_the_list_is_gone_through_once_and_never_in_a_circle() -> None:
    deployment = Deployment("large", fallbacks=("medium", "small"))
    assert left_of(deployment, "large") == ("medium", "small")
    assert left_of(deployment, "medium") == ("small",)
    assert left_of(deployment, "small") == ()


def test_fallbacks_are_asked_when_the_wait_would_exceed_its_target() -> None:
    def wait(waited: float, ahead: float | None, target: float | None, **how: bool) -> float | None:
        return expected_wait(waited=waited, ahead=ahead, target=target, **{"served": True, "scaled": False, **how})

    assert wait(0.0, 1.0, 2.0) is None
    assert wait(0.0, 3.0, 2.0) == 3.0
    assert wait(1.5, 1.0, 2.0) == 1.0
    assert wait(1.0, None, 2.0) is None
    assert wait(2.5, None, 2.0) == NEVER, "it has waited for too long, and nobody knows for how much longer"
    assert wait(9.0, 9.0, None) is None
    assert wait(0.0, None, None, served=False) == NEVER
    assert wait(0.0, None, 2.0, served=False, scaled=True) is None, "its worker is on the way, woken by this request"
    assert wait(2.5, None, 2.0, served=False, scaled=True) == NEVER


def test_what_is_sent_to_a_fallback_says_what_was_asked_and_begins_anew_for_caches() -> None:
    message = chat("a long enough text for a chunk " * 20, cache_salt=b"salt")
    message.prefix = prefix_of(message)
    first = sent_to(message, "medium")
    assert (first.context.model, first.asked_model) == ("medium", "large")
    assert first.chat == message.chat
    assert first.prefix == prefix_of(first) != message.prefix
    second = sent_to(first, "small")
    assert (second.context.model, second.asked_model) == ("small", "large")
    assert message.context.model == "large"
