"""Least privilege on the bus: what a service of each role may publish and subscribe. ONE table, pure functions.

A broker takes these lists as its users' permissions; what is not listed is refused. Two things to know when reading:

- JetStream is asked through subjects (``$JS.API.…``) that name stream, consumer and filter, so that a list can hold a
  service to its own consumers. ``CONSUMER.CREATE.TOKENS.*.tok.edge-0.*`` reads: a consumer of any name that sees only
  what is for edge-0.
- Answers come to the service's own inbox prefix, so no service reads another's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from inferbus_bus.connection import inbox_prefix
from inferbus_contracts.subjects import (
    ARTIFACTS,
    ARTIFACTS_STREAM,
    ATTACHED_SUBJECT,
    BATCH_SHARDS,
    CACHE_SUBJECTS,
    CANCEL_SUBJECT,
    CAPACITY_SUBJECTS,
    HEARTBEAT_SUBJECTS,
    OBJECTS,
    OBJECTS_STREAM,
    QUEUE_CALLOUT,
    SHARDS,
    SPEND_SUBJECT,
    delivery_subject,
    edge_tokens,
    job_edge,
    recall_subject,
    shard_requests,
    subject_token,
)


class Role(Enum):
    EDGE = "edge"
    SCHEDULER = "scheduler"
    WORKER = "worker"
    BATCH = "batch"
    METER = "meter"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Permissions:
    """Allow lists of subjects with NATS wildcards. All else is refused."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def permissions(role: Role, name: str) -> Permissions:
    """What the instance ``name`` of ``role`` may do; ``name`` is also its name on the bus (inbox, consumers)."""
    lists = _TABLE[role](name)
    return Permissions(publish=lists.publish, subscribe=(f"{inbox_prefix(name)}.>", *lists.subscribe))


def _edge(name: str) -> Permissions:
    """Takes requests in, reads its own frames, and another edge's for a client that comes here with a stream begun
    there; owns the registries of tenants, the stored responses and the idempotency keys; reads what was changed."""
    owned = ("keys", "key_uses", "tenants", "projects", "members", "brands")
    return Permissions(
        publish=(
            "req.>",
            "audit.>",
            delivery_subject(name),
            CANCEL_SUBJECT,
            ATTACHED_SUBJECT,
            SPEND_SUBJECT,
            # One edge's frames at a time, its own or another's.
            *_reads("TOKENS", "tok.*.*"),
            *_log("tok.*.*"),
            *(subject for bucket in owned for subject in (*_watches(bucket), f"$KV.{bucket}.*")),
            *_watches("models"),
            *_watches("fleet"),
            *_watches("deployments"),
            # What a call may cost, and this edge's part of what may be spent.
            *(subject for bucket in ("prices", "budgets", "credits", "budget_ledgers") for subject in _watches(bucket)),
            "$KV.budget_ledgers.*",
            *_holds(f"budget-{subject_token(name)}"),
            *(subject for bucket in ("idempotency", "responses") for subject in _looks_up(bucket)),
            *_log("audit.>", "AUDIT"),
            # Who a client with an API key is, when the broker asks.
            "$SYS._INBOX.>",
        ),
        subscribe=(ATTACHED_SUBJECT, SPEND_SUBJECT, QUEUE_CALLOUT),
    )


def _scheduler(name: str) -> Permissions:
    """Moves requests to workers, and from one that is gone back to the queue with what the log has of them: so it reads
    the log, and fences in the place of that worker. Ends, in a frame, those that it never places."""
    shards = range(SHARDS)
    return Permissions(
        publish=(
            *(
                subject
                for shard in shards
                for subject in (
                    *_works("REQUESTS", f"scheduler-{shard}", shard_requests(shard)),
                    f"$JS.API.CONSUMER.DELETE.REQUESTS.scheduler-{shard}",
                    *_holds(f"scheduler-{shard}"),
                )
            ),
            *_holds(f"scheduler-member-{subject_token(name)}"),
            # What it gives back to the queue, or to a model's fallback.
            "req.>",
            "work.*.*",
            "tok.*.*",
            *_log("tok.*.*"),
            # What is placed on whom: read without taking it, and taken out when it has been given to another.
            "$JS.API.STREAM.INFO.WORK",
            "$JS.API.DIRECT.GET.WORK",
            "$JS.API.STREAM.MSG.DELETE.WORK",
            # What a lost worker had been given, and what had not reached it.
            "$JS.API.CONSUMER.INFO.WORK.*",
            "ctl.recall.*",
            *_watches("fleet"),
            *_watches("models"),
            # Of a model that no worker has served yet.
            "$KV.models.*",
            *_watches("tenants"),
            *_watches("projects"),
            *_watches("deployments"),
            "$KV.deployments.*",
            *(subject for bucket in ("revisions", "rollouts") for subject in (*_watches(bucket), f"$KV.{bucket}.*")),
            # What it decided about revisions, and the one that a model is known by.
            "audit.*.rollout.*",
            "$KV.models.*",
            "dec.>",
            CAPACITY_SUBJECTS,
            # Since when the oldest request waits.
            "$JS.API.DIRECT.GET.REQUESTS",
            # How many workers there should be: what waits is counted on the queue, what was decided is read by all.
            "$JS.API.STREAM.INFO.REQUESTS",
            *_reads("DECISIONS", "dec.scaling.>"),
        ),
        subscribe=(CANCEL_SUBJECT, HEARTBEAT_SUBJECTS, CACHE_SUBJECTS),
    )


def _worker(name: str) -> Permissions:
    """Takes the work of its own name, publishes frames in its own name only and reads them again when work comes twice,
    renews its own lease."""
    token = subject_token(name)
    return Permissions(
        publish=(
            # One consumer, made anew for each incarnation.
            *_works("WORK", token, f"work.{token}.*"),
            f"$JS.API.CONSUMER.DELETE.WORK.{token}",
            f"tok.*.{token}",
            *_log(f"tok.*.{token}"),
            f"ctl.heartbeat.{token}",
            f"ctl.cache.{token}",
            *_watches("fleet"),
            f"$KV.fleet.{token}",
            *_watches("models"),
            "$KV.models.*",
            # What it is made of.
            *_watches("revisions"),
            f"$JS.API.DIRECT.GET.{ARTIFACTS_STREAM}.$O.{ARTIFACTS}.M.*",
            *_log(f"$O.{ARTIFACTS}.C.*", ARTIFACTS_STREAM),
        ),
        subscribe=(CANCEL_SUBJECT, recall_subject(name)),
    )


def _batch(name: str) -> Permissions:
    """Submits lines as an edge submits requests, with what they may cost reserved as there, and reads the frames that
    are for jobs; owns files, uploads and jobs, and their content where no other store is set."""
    owned = ("files", "uploads", "jobs", "job_checkpoints")
    return Permissions(
        publish=(
            "req.>",
            *(f"audit.*.{kind}.*" for kind in ("file", "upload", "job")),
            CANCEL_SUBJECT,
            *(subject for shard in range(BATCH_SHARDS) for subject in _log(edge_tokens(job_edge(shard)))),
            *(subject for shard in range(BATCH_SHARDS) for subject in _reads("TOKENS", edge_tokens(job_edge(shard)))),
            *(subject for shard in range(BATCH_SHARDS) for subject in _holds(f"batch-{shard}")),
            *_holds(f"batch-member-{subject_token(name)}"),
            *(subject for bucket in owned for subject in (*_watches(bucket), *_looks_up(bucket))),
            *_objects(),
            # Straight over the queue: what came, and where its result goes.
            *_works("JOBS", "batch", "job.submit.>"),
            "$JS.API.STREAM.INFO.JOBS",
            *_holds("intake-0"),
            *_holds(f"intake-member-{subject_token(name)}"),
            "job.result.>",
            *(
                subject
                for bucket in ("models", "keys", "tenants", "projects", "members", "deployments", "fleet")
                for subject in _watches(bucket)
            ),
            *(subject for bucket in ("prices", "budgets", "credits", "budget_ledgers") for subject in _watches(bucket)),
            "$KV.budget_ledgers.*",
            *_holds(f"budget-{subject_token(name)}"),
        ),
        subscribe=(CAPACITY_SUBJECTS,),
    )


def _meter(_: str) -> Permissions:
    """Reads every frame; keeps prices, budgets and credits, issues invoices, and settles what edges were granted; sees
    how long workers are up."""
    return Permissions(
        publish=(
            *_log(),
            *_log("dlv.>", "DELIVERIES"),
            *_watches("prices"),
            # What is issued the broker takes once: it cannot be changed by whoever issues it.
            *_watches("invoices"),
            "$KV.invoices.*",
            *_looks_up("invoice_contents"),
            *_watches("billing_profiles"),
            "$KV.billing_profiles.*",
            "$KV.prices.*",
            *_holds("meter"),
            # Budgets: what may be spent, who may spend it, who was told; and how far the streams are.
            *(
                subject
                for bucket in ("budgets", "credits", "budget_ledgers", "budget_alerts")
                for subject in (*_watches(bucket), f"$KV.{bucket}.*")
            ),
            *_holds("meter-budgets"),
            *(f"$JS.API.STREAM.INFO.{stream}" for stream in ("REQUESTS", "WORK")),
            *(f"audit.*.{kind}.*" for kind in ("budget", "credit")),
            *_holds("meter-deliveries"),
            *_watches("fleet"),
            *_holds("meter-replay"),
            # Erasures. Of what edges keep it takes out single entries, and cannot read or write an answer.
            *_watches("erasures"),
            "$KV.erasures.*",
            *_holds("meter-privacy"),
            *(f"$JS.API.STREAM.{verb}.KV_{bucket}" for verb in ("INFO", "PURGE") for bucket in _ERASED),
            *_watches("idempotency"),
        ),
        subscribe=(),
    )


_ERASED = ("responses", "idempotency")


def _admin(_: str) -> Permissions:
    """The operator: makes streams, fills registries, looks into everything."""
    return Permissions(publish=(">",), subscribe=(">",))


_TABLE: Mapping[Role, Callable[[str], Permissions]] = {
    Role.EDGE: _edge,
    Role.SCHEDULER: _scheduler,
    Role.WORKER: _worker,
    Role.BATCH: _batch,
    Role.METER: _meter,
    Role.ADMIN: _admin,
}


def _reads(stream: str, subject: str) -> tuple[str, ...]:
    """An ordered reader of what matches ``subject`` in ``stream``, and of no other message in it."""
    return (
        f"$JS.API.CONSUMER.CREATE.{stream}.*.{subject}",
        f"$JS.API.CONSUMER.DELETE.{stream}.*",
        f"$JS.FC.{stream}.>",
    )


def _watches(bucket: str) -> tuple[str, ...]:
    """All of one registry, to read."""
    return _reads(f"KV_{bucket}", f"$KV.{bucket}.>")


def _looks_up(bucket: str) -> tuple[str, ...]:
    """Single entries of a bucket, by name: to read and to write."""
    return (f"$JS.API.DIRECT.GET.KV_{bucket}.$KV.{bucket}.*", f"$KV.{bucket}.*")


def _holds(lease: str) -> tuple[str, ...]:
    """The lease of that name, to take, renew and give back."""
    return (*_watches("leases"), f"$KV.leases.{lease}")


def _works(stream: str, durable: str, subject: str) -> tuple[str, ...]:
    """A work queue: its one durable consumer, made once, pulled from and acknowledged."""
    return (
        f"$JS.API.CONSUMER.CREATE.{stream}.{durable}.{subject}",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}",
        f"$JS.ACK.{stream}.{durable}.>",
    )


def _objects() -> tuple[str, ...]:
    """The object store: to write, to read and to take out."""
    return (
        f"$O.{OBJECTS}.>",
        f"$JS.API.STREAM.INFO.{OBJECTS_STREAM}",
        f"$JS.API.STREAM.PURGE.{OBJECTS_STREAM}",
        f"$JS.API.DIRECT.GET.{OBJECTS_STREAM}.>",
        *_reads(OBJECTS_STREAM, f"$O.{OBJECTS}.>"),
        *_log(f"$O.{OBJECTS}.>", OBJECTS_STREAM),
    )


def _log(subject: str = "tok.>", stream: str = "TOKENS") -> tuple[str, ...]:
    """What matches ``subject`` in ``stream``, by position.

    A wildcard cannot stand for a part of a name, so who guesses the name of another's reader could pull from it.
    """
    return (
        f"$JS.API.STREAM.INFO.{stream}",
        f"$JS.API.CONSUMER.CREATE.{stream}.*.{subject}",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*",
        f"$JS.API.CONSUMER.DELETE.{stream}.*",
    )
