"""What a webhook says, and its signature as Standard Webhooks has it."""

import base64
import hashlib
import hmac
import json

from inferbus.bus.v1.registry_pb2 import BudgetAlertRecord
from inferbus_rating import ledger as ledgers

_PREFIX = "whsec_"


def secret_of(text: str) -> bytes:
    """The key of a secret as the standard writes it: ``whsec_`` and base64 of 24 to 64 bytes. Raises ValueError."""
    if not text.startswith(_PREFIX):
        raise ValueError(f"a webhook secret begins with {_PREFIX}")
    key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    if not 24 <= len(key) <= 64:
        raise ValueError("a webhook secret has 24 to 64 bytes")
    return key


def body_of(alert: BudgetAlertRecord) -> bytes:
    """The same for each try."""
    budget = alert.budget
    data = {
        "tenant_id": budget.tenant_id,
        "project_id": budget.project_id or None,
        "key_id": budget.key_id or None,
        "period": ledgers.PERIODS[budget.period],
        "period_start": alert.period_start.ToJsonString() if alert.HasField("period_start") else None,
        "threshold": alert.threshold,
        "amount": alert.amount,
        "spent": alert.spent,
        "currency": budget.currency,
        "hard": budget.hard,
    }
    told = {"type": "budget.threshold_reached", "timestamp": alert.create_time.ToJsonString(), "data": data}
    return json.dumps(told, separators=(",", ":")).encode()


def headers_of(alert_id: str, unix_seconds: int, body: bytes, key: bytes) -> dict[str, str]:
    signed = f"{alert_id}.{unix_seconds}.".encode() + body
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {
        "content-type": "application/json",
        "user-agent": "inferbus",
        "webhook-id": alert_id,
        "webhook-timestamp": str(unix_seconds),
        "webhook-signature": f"v1,{signature}",
    }
