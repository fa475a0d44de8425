"""What a plan becomes on the bus: what its input begins with is said, for whoever places it."""

from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus_contracts.prefixes import prefix_of
from inferbus_dialect.acceptance import messages_of
from inferbus_dialect.plan import Plan


def prompts(*texts: str) -> tuple[GenerateRequest, ...]:
    requests = tuple(GenerateRequest() for _ in texts)
    for request, text in zip(requests, texts, strict=True):
        request.prompt.text = text
    return requests


def accepted(tenant: str, *texts: str) -> list[GenerateRequest]:
    plan = Plan("completions", "model", False, prompts(*texts), {"api": "completions", "n": len(texts)})
    return messages_of(plan, KeyRecord(tenant_id=tenant), bytes(16), "edge", 1, 2, b"{}")


def test_each_choice_says_what_it_begins_with() -> None:
    sea, hill = "The sea is wide. " * 60, "The hill is green. " * 60
    messages = accepted("tenant", sea, sea, hill, sea)
    for message in messages:
        assert message.prefix == prefix_of(message) != b""
    assert messages[0].prefix == messages[1].prefix == messages[3].prefix != messages[2].prefix


def test_tenants_have_no_chunk_in_common() -> None:
    text = "The sea is wide. " * 60
    one, other = accepted("one", text)[0].prefix, accepted("other", text)[0].prefix
    chunks = [{prefix[at : at + 8] for at in range(0, len(prefix), 8)} for prefix in (one, other)]
    assert not chunks[0] & chunks[1]
