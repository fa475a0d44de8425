"""What is sent to a fallback: no more at once than it has places for."""

from inferbus.bus.v1.control_pb2 import Heartbeat
from inferbus.bus.v1.registry_pb2 import ModelRecord, WorkerRecord, WorkerState
from inferbus.bus.v1.request_pb2 import ChatInput, ChatMessage, GenerateRequest
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus_scheduler.core.admission import Limits
from inferbus_scheduler.core.deployments import Deployment
from inferbus_scheduler.core.drain_rate import DrainRate
from inferbus_scheduler.core.fairness import Shares
from inferbus_scheduler.core.placement import Policy
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.fallbacks import Fallbacks
from inferbus_scheduler.fleet import Fleet
from inferbus_scheduler.waiting import SendTo, Waiting

DEPLOYMENTS = {"large": Deployment("large", fallbacks=("medium", "small"))}


def fleet_of(**capacities: dict[str, int]) -> Fleet:
    """By model and zone: a worker of so many places."""
    fleet = Fleet(heartbeat_timeout=1e9, reconnect_grace=0.0, now=0.0)
    for model, zones in capacities.items():
        for zone, capacity in zones.items():
            record = WorkerRecord(
                worker=f"{model}-{zone}", boot=1, model=model, zone=zone, capacity=capacity,
                state=WorkerState.WORKER_STATE_ACTIVE,
            )  # fmt: skip
            fleet.registered(record.worker, record, 0.0)
            fleet.heartbeat(Heartbeat(worker=record.worker, boot=1), 0.0)
    return fleet


def test_each_fallback_gets_as_many_as_it_has_places_in_all_zones_and_the_rest_stays() -> None:
    fleet = fleet_of(medium={"a": 1, "b": 2}, small={"a": 2})
    queues = Queues(Shares())
    fallbacks = Fallbacks(
        fleet=fleet, queues=queues, rate=DrainRate(), policy=lambda _: Policy(),
        model=lambda name: ModelRecord(name=name),
        deployment=lambda model: DEPLOYMENTS.get(model, Deployment(model)),
    )  # fmt: skip

    def chosen(now: float) -> str | None:
        message = GenerateRequest(
            context=RequestContext(model="large"), chat=ChatInput(messages=[ChatMessage(role="user", content="hello")])
        )
        request = Request(b"r" * 16, "large", "t", "p", Priority.INTERACTIVE, now, now + 60.0)
        return fallbacks.choose(message, request, now)[0]

    assert [chosen(5.0) for _ in range(7)] == ["medium"] * 3 + ["small"] * 2 + [None] * 2
    taken = Request(b"x" * 16, "medium", "t", "p", Priority.INTERACTIVE, 0.0, 60.0)
    fleet.reserve("medium-b", taken, 0.0)
    assert [chosen(7.0) for _ in range(3)] == ["medium"] * 2 + ["small"], "those that were sent have arrived by then"


def test_what_can_never_be_loaded_is_refused_at_once_and_one_with_a_fallback_is_answered_by_that() -> None:
    fleet = fleet_of(small={"a": 1})
    queues, rate, hopeless = Queues(Shares()), DrainRate(), {"large", "huge"}
    deployments = {
        "large": Deployment("large", fallbacks=("small",), max_replicas=1, cold_start=600.0),
        "huge": Deployment("huge", max_replicas=1, cold_start=600.0),
    }

    def deployment(model: str) -> Deployment:
        return deployments.get(model, Deployment(model))

    fallbacks = Fallbacks(
        fleet=fleet, queues=queues, rate=rate, policy=lambda _: Policy(), deployment=deployment,
        model=lambda name: ModelRecord(name=name), too_large=hopeless.__contains__,
    )  # fmt: skip
    waiting = Waiting(
        fleet=fleet, queues=queues, rate=rate, fallbacks=fallbacks, deployment=deployment, limits=Limits(9, 30.0, 1.0),
        knows_model=lambda _: True, too_large=hopeless.__contains__,
    )  # fmt: skip

    def asked(model: str) -> tuple[GenerateRequest, Request]:
        chat = ChatInput(messages=[ChatMessage(role="user", content="hello")])
        message = GenerateRequest(context=RequestContext(model=model), chat=chat)
        return message, Request(b"r" * 16, model, "t", "p", Priority.INTERACTIVE, 1.0, 60.0)

    refused = waiting.refusal(asked("huge")[1], 2.0)
    assert refused is not None
    assert (refused.reason, refused.retry_after) == ("model_too_large", 0.0)
    assert waiting.refusal(asked("large")[1], 2.0) is None
    assert waiting.look(*asked("large"), 2.0) == SendTo("small")
    # It may be loaded after all: then who comes waits, and looks soon whether that still holds.
    hopeless.clear()
    assert waiting.refusal(asked("huge")[1], 2.0) is None
    assert waiting.look(*asked("huge"), 2.0) == 3.0
