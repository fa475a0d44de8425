"""A batch as OpenAI writes it: whoever asks for it, and whoever is told of its end, sees the same."""

import re
from datetime import timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.batch.v1.batch_pb2 import Job, JobState
from inferbus_runtime.errors import invalid

_STATUS = {
    JobState.JOB_STATE_VALIDATING: "validating",
    JobState.JOB_STATE_ACTIVE: "in_progress",
    JobState.JOB_STATE_FINALIZING: "finalizing",
    JobState.JOB_STATE_CANCELLING: "cancelling",
    JobState.JOB_STATE_COMPLETED: "completed",
    JobState.JOB_STATE_CANCELLED: "cancelled",
    JobState.JOB_STATE_FAILED: "failed",
    JobState.JOB_STATE_EXPIRED: "expired",
}
_WINDOW = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_UNITS = {"m": 60, "h": 3600, "d": 86_400}
_LONGEST = timedelta(days=14)


def batch_object(job: Job) -> dict[str, Any]:
    status = _STATUS[job.state]
    ended = _seconds(job.end_time)
    errors = None
    if job.faults:
        data = [
            {"code": one.code, "line": one.line or None, "message": one.message, "param": one.param or None}
            for one in job.faults
        ]
        errors = {"object": "list", "data": data}
    return {
        "id": job.job_id,
        "object": "batch",
        "endpoint": job.endpoint,
        "model": job.model or None,
        "errors": errors,
        "input_file_id": job.input_file_id,
        "completion_window": window_of(job.expire_time.seconds - job.create_time.seconds),
        "status": status,
        "output_file_id": job.output_file_id or None,
        "error_file_id": job.error_file_id or None,
        "created_at": job.create_time.seconds,
        "in_progress_at": _seconds(job.active_time),
        "expires_at": job.expire_time.seconds,
        "finalizing_at": _seconds(job.finalize_time),
        "completed_at": ended if status == "completed" else None,
        "failed_at": ended if status == "failed" else None,
        "expired_at": ended if status == "expired" else None,
        "cancelling_at": _seconds(job.cancel_time),
        "cancelled_at": ended if status == "cancelled" else None,
        "request_counts": {
            "total": job.line_count,
            "completed": job.completed_line_count,
            "failed": job.failed_line_count,
        },
        "usage": {
            "input_tokens": job.usage.input_tokens,
            "input_tokens_details": {"cached_tokens": job.usage.cached_input_tokens},
            "output_tokens": job.usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": job.usage.reasoning_tokens},
            "total_tokens": job.usage.input_tokens + job.usage.output_tokens,
        },
        "metadata": dict(job.metadata),
    }


def seconds_of(window: str) -> int:
    """``24h``, ``90m``, ``7d``. Raises InferBusError INVALID_ARGUMENT."""
    found = _WINDOW.fullmatch(window)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= _LONGEST.total_seconds():
        message = "'completion_window' is a time such as '24h', '90m' or '7d', of 14 days at most."
        raise invalid(message, param="completion_window")
    return seconds


def window_of(seconds: int) -> str:
    """The inverse, in the largest unit but days that it is whole in: what was asked as ``24h`` comes back so."""
    return f"{seconds // 3600}h" if seconds % 3600 == 0 else f"{max(1, round(seconds / 60))}m"


def _seconds(time: Timestamp) -> int | None:
    return time.seconds or None
