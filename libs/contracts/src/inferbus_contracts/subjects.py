"""The one table of addresses: message type → subject → stream → retention.

Callers hand over a message; nobody else writes a subject. Names that become part of a subject (models, workers,
edges) pass through :func:`subject_token`, which is injective, so two names never share a subject.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.bus.v1.batch_pb2 import FileRecord, JobCheckpoint, JobRecord, UploadRecord
from inferbus.bus.v1.brand_pb2 import BrandRecord
from inferbus.bus.v1.control_pb2 import Attached, CacheEvents, Cancel, Capacity, Heartbeat, Probe, Recall, Spend
from inferbus.bus.v1.decision_pb2 import PlacementDecisions, ScalingDecision
from inferbus.bus.v1.delivery_pb2 import Deliveries
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.invoice_pb2 import BillingProfileRecord, InvoiceContentRecord, InvoiceRecord
from inferbus.bus.v1.registry_pb2 import (
    BudgetAlertRecord,
    BudgetLedgerRecord,
    BudgetRecord,
    CreditRecord,
    DeploymentRecord,
    ErasureRecord,
    IdempotencyRecord,
    KeyRecord,
    KeyUseRecord,
    MemberRecord,
    ModelRecord,
    PriceRecord,
    ProjectRecord,
    ResponseRecord,
    TenantRecord,
    WorkerRecord,
)
from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus.bus.v1.revision_pb2 import RevisionRecord, RolloutRecord
from inferbus.common.v1.usage_pb2 import PriorityClass

Retention = Literal["workqueue", "limits"]
CLASS_TOKENS = {
    PriorityClass.PRIORITY_CLASS_UNSPECIFIED: "interactive",
    PriorityClass.PRIORITY_CLASS_INTERACTIVE: "interactive",
    PriorityClass.PRIORITY_CLASS_BACKGROUND: "background",
    PriorityClass.PRIORITY_CLASS_BATCH: "batch",
}
SHARDS = 16
"""Parts that all models are divided into, by their names. Each is scheduled by one scheduler at a time. Fixed: it is a
part of the subjects of what is stored."""
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One JetStream stream. ``discard_new``: refuse what is above the bound instead of dropping the oldest.
    ``newest_per_subject``: so many messages of one subject are kept; None: as many as there are. ``told_on``: subjects
    of the same shape on which all that is stored is said once more, and what was stored before is not."""

    name: str
    subjects: tuple[str, ...]
    retention: Retention
    max_age: timedelta
    max_bytes: int
    duplicate_window: timedelta
    discard_new: bool
    description: str
    newest_per_subject: int | None = None
    told_on: str = ""


@dataclass(frozen=True, slots=True)
class BucketSpec:
    """One KV bucket. ``leases``: entries carry a time to live of their own, and their end is seen by watchers.
    ``max_bytes``: what it may hold before it refuses more. ``write_once``: an entry is never changed or deleted."""

    name: str
    record: type[Any]
    description: str
    leases: bool = False
    max_bytes: int = 64 << 20
    write_once: bool = False


# A frame published again after an outage must still be recognised: the window is longer than any retry.
_WINDOW = timedelta(minutes=10)
# The least that there is. A stream knows ids, not whose they are: where tenants publish, one could take another's.
_NO_WINDOW = timedelta(milliseconds=100)
_GIB = 1 << 30
# What one tenant may hold of a bucket that all tenants share: 2,000 keys of 2 KiB each. The buckets are sized for so
# many tenants that use all of it, which few do.
TENANT_SHARE_BYTES = 4 << 20
_FULL_SHARES = 256

STREAMS = (
    StreamSpec(
        "REQUESTS", ("req.>",), "workqueue", timedelta(hours=1), 1 * _GIB, _WINDOW, True, "accepted, not yet placed"
    ),
    StreamSpec(
        "WORK", ("work.>",), "workqueue", timedelta(hours=24), 1 * _GIB, _WINDOW, True, "what each worker is running"
    ),
    StreamSpec(
        "TOKENS", ("tok.>",), "limits", timedelta(hours=72), 8 * _GIB, _WINDOW, False,
        "frames: delivery, resume, billing, replay",
    ),
    # A subject is one tenant's changes of one kind: whoever makes very many loses the oldest of his own, and nobody's
    # else. An event has 3 KiB at most (0.5 as a rule), and there are about 20 kinds.
    StreamSpec(
        "AUDIT", ("audit.>",), "limits", timedelta(days=400), 16 * _GIB, _WINDOW, False, "who changed what", 10_000
    ),
    # 30 bytes a request, and as long as the frames that they are compared with.
    StreamSpec(
        "DELIVERIES", ("dlv.>",), "limits", timedelta(hours=72), 1 * _GIB, _WINDOW, False,
        "what edges have handed to clients",
    ),
    # 100 to 200 bytes a decision: a policy can be tried on yesterday's.
    StreamSpec(
        "DECISIONS", ("dec.>",), "limits", timedelta(hours=72), 2 * _GIB, _WINDOW, False,
        "where requests were placed and how many workers there should be, and why",
    ),
    StreamSpec(
        "JOBS", ("job.submit.>",), "workqueue", timedelta(days=7), 1 * _GIB, _NO_WINDOW, True,
        "jobs and single requests that came straight over the queue, and are not taken yet",
    ),
    # Whoever listens hears a result once, however often it is published: not the subject on which it is stored.
    StreamSpec(
        "RESULTS", ("job.result.>",), "limits", timedelta(days=3), 1 * _GIB, _WINDOW, False,
        "what came of jobs and single requests that came straight over the queue", told_on="job.told.>",
    ),
)  # fmt: skip

BUCKETS = (
    BucketSpec("keys", KeyRecord, "API keys by hash", max_bytes=_FULL_SHARES * TENANT_SHARE_BYTES),
    # 2,000 of 150 bytes for each of these tenants.
    BucketSpec("key_uses", KeyUseRecord, "when a key was last used", max_bytes=128 << 20),
    BucketSpec("tenants", TenantRecord, "who is billed and isolated"),
    # 1,000 of 1 KiB: a share is never used up.
    BucketSpec("projects", ProjectRecord, "scopes of keys and limits inside a tenant", max_bytes=256 << 20),
    BucketSpec("members", MemberRecord, "users and service accounts", max_bytes=_FULL_SHARES * TENANT_SHARE_BYTES),
    # 64 KiB of logo at most: 1,900 tenants with the largest.
    BucketSpec("brands", BrandRecord, "how the console looks under a tenant's domain", max_bytes=128 << 20),
    BucketSpec("models", ModelRecord, "public model names"),
    BucketSpec("deployments", DeploymentRecord, "how models are served: targets, fallbacks, bounds of replicas"),
    BucketSpec("revisions", RevisionRecord, "what models are made of: artifacts, settings, how they were validated"),
    BucketSpec("rollouts", RolloutRecord, "which revisions serve a model, and what was decided about them"),
    BucketSpec("prices", PriceRecord, "price book by rate version"),
    BucketSpec("budgets", BudgetRecord, "what tenants, projects and keys may spend"),
    BucketSpec("credits", CreditRecord, "what was paid in beforehand"),
    BucketSpec(
        "budget_ledgers",
        BudgetLedgerRecord,
        "which edge may spend how much of a budget",
        leases=True,
        max_bytes=256 << 20,
    ),
    BucketSpec("budget_alerts", BudgetAlertRecord, "thresholds of budgets that were passed", leases=True),
    BucketSpec("billing_profiles", BillingProfileRecord, "who sells and who buys, as invoices say it"),
    # 0.5 KiB an entry: every meter holds them all. Ten years of 3,000 invoices a month.
    BucketSpec(
        "invoices", InvoiceRecord, "register of invoices, in order of issue", max_bytes=256 << 20, write_once=True
    ),
    BucketSpec(
        "invoice_contents", InvoiceContentRecord, "what invoices say, by hash", max_bytes=2 * _GIB, write_once=True
    ),
    BucketSpec("erasures", ErasureRecord, "what was erased: it is erased again whenever it comes back"),
    BucketSpec("fleet", WorkerRecord, "live workers and their leases", leases=True),
    BucketSpec("leases", WorkerRecord, "who may act alone", leases=True),
    BucketSpec("idempotency", IdempotencyRecord, "requests by idempotency key", leases=True, max_bytes=256 << 20),
    BucketSpec("responses", ResponseRecord, "stored responses", leases=True, max_bytes=2 * _GIB),
    # 1 KiB, and 100 bytes for each 8 MiB: a million files, or 10,000 of 8 GiB.
    BucketSpec("files", FileRecord, "customers' files: what they are, and where their content is", max_bytes=_GIB),
    BucketSpec("uploads", UploadRecord, "files that are coming in parts", leases=True, max_bytes=256 << 20),
    BucketSpec("jobs", JobRecord, "customers' batches", leases=True, max_bytes=512 << 20),
    # The newest of each job that has not ended: up to 1 MiB of segments and lines that are done out of order.
    BucketSpec("job_checkpoints", JobCheckpoint, "how far jobs are", max_bytes=2 * _GIB),
)

OBJECTS = "files"
OBJECTS_STREAM = f"OBJ_{OBJECTS}"
"""The object store (ADR-20) of files, uploads and jobs, where no other store is set."""
OBJECTS_MAX_BYTES = 64 * _GIB
ARTIFACTS = "artifacts"
ARTIFACTS_STREAM = f"OBJ_{ARTIFACTS}"
"""Another one, of what revisions are made of: workers read it, and cannot read customers' files."""
ARTIFACTS_MAX_BYTES = 64 * _GIB
FILE_STORE_BYTES = sum(one.max_bytes for one in (*STREAMS, *BUCKETS)) + OBJECTS_MAX_BYTES + ARTIFACTS_MAX_BYTES
"""What a broker reserves for all of them."""
BATCH_SHARDS = 16
"""Parts that all jobs are divided into. Each is run by one runner at a time. Fixed: it is in the subjects of frames."""

CANCEL_SUBJECT = "ctl.cancel"
HEARTBEAT_SUBJECTS = "ctl.heartbeat.*"
ATTACHED_SUBJECT = "ctl.attached"
SPEND_SUBJECT = "ctl.spend"
CACHE_SUBJECTS = "ctl.cache.*"
CAPACITY_SUBJECTS = "ctl.capacity.*"


def stream_spec(name: str) -> StreamSpec:
    """The stream of that name. KeyError if there is none."""
    return {one.name: one for one in STREAMS}[name]


def bucket_spec(name: str) -> BucketSpec:
    """The bucket of that name. KeyError if there is none."""
    return {one.name: one for one in BUCKETS}[name]


def subject_token(name: str) -> str:
    """``name`` as one token of a subject or one KV key: what NATS cannot carry becomes ``=XX`` of its UTF-8."""
    if not name:
        raise ValueError("an empty name has no subject")
    return "".join(char if char in _PLAIN else "".join(f"={byte:02X}" for byte in char.encode()) for char in name)


def name_of_token(token: str) -> str:
    """The inverse of :func:`subject_token`."""
    head, *rest = token.split("=")
    return (head.encode() + b"".join(bytes.fromhex(part[:2]) + part[2:].encode() for part in rest)).decode()


def model_shard(model: str) -> int:
    """Which shard the model belongs to; its adapters (``model:adapter``) belong to the same one."""
    return zlib.crc32(model.partition(":")[0].encode()) % SHARDS


def request_subject(message: GenerateRequest) -> str:
    model = message.context.model
    return f"req.{model_shard(model)}.{CLASS_TOKENS[message.priority_class]}.{subject_token(model)}"


def job_edge(shard: int) -> str:
    """In the place of an edge: for whom the frames of a shard's jobs are."""
    return f"batch-{shard}"


BUS_ACCOUNT, QUEUE_ACCOUNT = "INFERBUS", "TENANTS"
"""Of the broker: that of the services, and that of tenants' own clients. They share no subject but those below."""
QUEUE_CALLOUT = "$SYS.REQ.USER.AUTH"
"""Where the broker asks who a client is whom it does not know."""


def submit_subject(tenant_id: str, key_id: str, tag: str) -> str:
    """Where jobs and single requests come straight over the queue, in the name of one key. ``tag``: see
    :func:`result_prefix`."""
    return f"job.submit.{subject_token(tenant_id)}.{subject_token(key_id)}.{tag}"


def submitter_of(subject: str) -> tuple[str, str, str]:
    """(tenant, key, tag) of a :func:`submit_subject`. Raises ValueError for another one."""
    job, submit, tenant, key, tag = subject.split(".")
    if (job, submit) != ("job", "submit"):
        raise ValueError(subject)
    return name_of_token(tenant), name_of_token(key), tag


def result_prefix(tenant_id: str, project_id: str, tag: str) -> str:
    """What came of a project's jobs and single requests is told below it.

    ``tag``: what only keys of the project are told. Whoever may ask the broker anything says where the answer goes:
    among the results of others, if he could name them.
    """
    return f"job.result.{subject_token(tenant_id)}.{subject_token(project_id)}.{tag}"


def queue_inbox(tenant_id: str, key_id: str) -> str:
    """Prefix of the inboxes of a key's own clients."""
    return f"_INBOX.{subject_token(tenant_id)}.{subject_token(key_id)}"


def shard_requests(shard: int) -> str:
    """All requests of one shard."""
    return f"req.{shard}.>"


def work_subject(worker: str, boot: int) -> str:
    """What is placed on one incarnation of a worker: the next one gets nothing of it by itself."""
    return f"work.{subject_token(worker)}.{boot}"


def incarnation_of(subject: str) -> tuple[str, int]:
    """(worker, boot) of a :func:`work_subject`."""
    _, worker, boot = subject.split(".")
    return name_of_token(worker), int(boot)


def recall_subject(worker: str) -> str:
    """What is said to one worker, and what probes whether it hears."""
    return f"ctl.recall.{subject_token(worker)}"


def token_subject(edge: str, worker: str) -> str:
    return f"tok.{subject_token(edge)}.{subject_token(worker)}"


def tenant_audit(tenant_id: str) -> str:
    """All changes of one tenant."""
    return f"audit.{subject_token(tenant_id)}.>"


def delivery_subject(edge: str) -> str:
    """What one edge has delivered."""
    return f"dlv.{subject_token(edge)}"


def edge_tokens(edge: str) -> str:
    """All that is published for one edge."""
    return f"tok.{subject_token(edge)}.*"


def scaling_subject(model: str, revision: str) -> str:
    """What was decided about the workers of a model, or of one of its revisions."""
    subject = f"dec.scaling.{subject_token(model)}"
    return f"{subject}.{subject_token(revision)}" if revision else subject


_SUBJECTS: dict[type[Any], Callable[[Any], str]] = {
    GenerateRequest: request_subject,
    Work: lambda message: work_subject(message.worker, message.boot),
    Frame: lambda message: token_subject(message.edge, message.stead or message.worker),
    Cancel: lambda _: CANCEL_SUBJECT,
    Heartbeat: lambda message: f"ctl.heartbeat.{subject_token(message.worker)}",
    Recall: lambda message: recall_subject(message.worker),
    Probe: lambda message: recall_subject(message.worker),
    Capacity: lambda message: f"ctl.capacity.{subject_token(message.model)}",
    CacheEvents: lambda message: f"ctl.cache.{subject_token(message.worker)}",
    PlacementDecisions: lambda message: f"dec.placement.{subject_token(message.model)}",
    ScalingDecision: lambda message: scaling_subject(message.model, message.revision),
    Attached: lambda _: ATTACHED_SUBJECT,
    Spend: lambda _: SPEND_SUBJECT,
    Deliveries: lambda message: delivery_subject(message.edge),
    AuditEvent: lambda message: f"audit.{subject_token(message.tenant_id)}.{message.action}",
}


def subject_of(message: Any) -> str:
    """Where ``message`` is published. KeyError for a type that does not travel on the bus."""
    return _SUBJECTS[type(message)](message)


Published = GenerateRequest | Work | Frame | Deliveries | AuditEvent | PlacementDecisions | ScalingDecision


def message_id(message: Published) -> str:
    """The deterministic id by which JetStream recognises a retry."""
    if isinstance(message, Frame):
        return f"{message.worker}-{message.boot}-{message.sequence}"
    if isinstance(message, Deliveries):
        return f"dlv-{message.edge}-{message.boot}-{message.sequence}"
    if isinstance(message, Work):
        return _attempt_id(message.request, message.attempt)
    if isinstance(message, AuditEvent):
        return message.event_id
    if isinstance(message, PlacementDecisions):
        return f"dec-{message.scheduler}-{message.boot}-{message.sequence}"
    if isinstance(message, ScalingDecision):
        of = f"{message.model}@{message.revision}" if message.revision else message.model
        return f"scale-{of}-{message.decision_time.ToMicroseconds()}"
    name = _attempt_id(message, message.resume.attempt)
    return f"{name}-{subject_token(message.context.model)}" if message.asked_model else name


def _attempt_id(request: GenerateRequest, attempt: int) -> str:
    """An attempt is placed once, and goes back to the queue once."""
    name = request.request_id.hex()
    return f"{name}-{attempt}" if attempt > 1 else name
