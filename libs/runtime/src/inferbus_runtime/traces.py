"""Spans that follow one request through HTTP headers, NATS headers and gRPC metadata (W3C traceparent).

With no collector nothing is recorded and a span costs about a microsecond; a traceparent that came in still goes on.
Attributes are the callers' business: OpenTelemetry GenAI names, never prompt or completion text.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from inferbus_runtime.errors import InferBusError

Value = str | bool | int | float

# Also what keeps a client's header from travelling on as anything but a trace id.
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
NO_HEADERS: dict[str, str] = {}

_propagator = TraceContextTextMapPropagator()
_tracer: trace.Tracer | None = None
_current: ContextVar["Span | None"] = ContextVar("inferbus_span", default=None)


class Span:
    """One timed operation. It began when it was made; ``with`` makes it the parent of what is called inside.

    What begins in one callback and ends in another calls :meth:`end` instead of using ``with``.
    """

    __slots__ = ("_headers", "_recorded", "_token")

    def __init__(self, recorded: trace.Span | None, headers: dict[str, str]) -> None:
        self._recorded = recorded
        self._headers = headers
        self._token: Token[Span | None] | None = None

    def headers(self) -> dict[str, str]:
        """``{"traceparent": ...}`` for the next hop; empty if nothing is traced. Do not change it."""
        return self._headers

    def set(self, **attributes: Value) -> None:
        if self._recorded is not None:
            self._recorded.set_attributes(attributes)

    def event(self, name: str, **attributes: Value) -> None:
        """A moment inside the span, such as the first token."""
        if self._recorded is not None:
            self._recorded.add_event(name, attributes)

    def end(self, error: BaseException | None = None) -> None:
        """Ends it, as failed with ``error``; once ended, nothing happens.

        Of the error only its reason or class is kept: its text may hold content.
        """
        recorded, self._recorded = self._recorded, None
        if recorded is None:
            return
        if error is not None:
            reason = error.reason if isinstance(error, InferBusError) else type(error).__qualname__
            recorded.set_attribute("error.type", reason)
            recorded.set_status(trace.StatusCode.ERROR, reason)
        recorded.end()

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            with suppress(ValueError):  # left in another context than entered (a generator): that context is gone
                _current.reset(self._token)
            self._token = None
        self.end(error)


def span(
    name: str,
    parent: Mapping[str, str] | None = None,
    *,
    kind: trace.SpanKind = trace.SpanKind.INTERNAL,
    **attributes: Value,
) -> Span:
    """Begin a span under ``parent`` (headers holding a traceparent), or under the current span if that is None."""
    above = _current.get() if parent is None else None
    if _tracer is None:
        headers = above.headers() if above is not None else _incoming(parent)
        return Span(None, headers)
    if above is not None and above._recorded is not None:
        context = trace.set_span_in_context(above._recorded, Context())
    else:
        context = _propagator.extract(above.headers() if above is not None else _incoming(parent), Context())
    recorded = _tracer.start_span(name, context, kind, attributes)
    headers = {}
    _propagator.inject(headers, trace.set_span_in_context(recorded, Context()))
    return Span(recorded, headers)


def current_headers() -> dict[str, str]:
    """The headers of the span that we are in, for the next hop."""
    current = _current.get()
    return NO_HEADERS if current is None else current.headers()


def current_trace_id() -> str:
    """32 hex digits, or empty outside of a trace."""
    return current_headers().get("traceparent", "")[3:35]


def record_with(tracer: trace.Tracer | None) -> None:
    """Record spans with ``tracer`` from now on; None: record nothing. For the one module that owns the exporter."""
    global _tracer
    _tracer = tracer


def _incoming(parent: Mapping[str, str] | None) -> dict[str, str]:
    traceparent = parent.get("traceparent") if parent else None
    if not traceparent or not TRACEPARENT.fullmatch(traceparent):
        return NO_HEADERS
    return {"traceparent": traceparent}
