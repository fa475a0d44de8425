"""The edge's HTTP: OpenAI's routes with an API key, its administration and the operator's JSON with an admin key.
Errors become click's."""

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import httpx2
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from inferbus_runtime import clock
from inferbus_runtime.tls import TlsError, trusting

from inferbus_cli.target import Target

# A stream says something at least every 15 s (keep-alive comments), an audit at each step.
_TIMEOUT = httpx2.Timeout(connect=5.0, read=120.0, write=30.0, pool=5.0)
_ADMIN = "/inferbus/v1"
_ORGANIZATION = "/v1/organization"
_PAGE = 100
# What a restart of a service takes on a busy machine.
PATIENCE = 15.0
MessageT = TypeVar("MessageT", bound=Message)


class Unreachable(click.ClickException):
    """Nobody answers, or the connection broke."""

    exit_code = 2


class Misnamed(Unreachable):
    """The URL is none, or who answers there is not believed: asking again changes nothing."""


class Refused(click.ClickException):
    """The edge answered with an error; ``message`` is what its body says. ``retry_after``: seconds, if it names any.
    ``status``: of HTTP; 0 for an error inside an answer."""

    exit_code = 2

    def __init__(self, message: str, retry_after: float | None = None, status: int = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status


class Edge:
    """A client of one edge. Use as a context manager."""

    def __init__(self, target: Target) -> None:
        self._target = target
        # trust_env: a proxy of the shell would be asked for a loopback address too.
        self._http = httpx2.Client(
            base_url=target.url, timeout=_TIMEOUT, trust_env=target.home is None, verify=_believed(target.ca)
        )

    def __enter__(self) -> "Edge":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """OpenAI's model list."""
        with self._call("GET", "/v1/models", self._target.api_key) as response:
            entries: list[dict[str, Any]] = _json(response)["data"]
            return entries

    def chat(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """OpenAI's stream of chunks, as they come. Raises Refused also for an error in the middle of it."""
        with self._call("POST", "/v1/chat/completions", self._target.api_key, json=body) as response:
            for line in response.iter_lines():
                if not line.startswith("data:"):  # comments keep the connection alive, ids are for resuming
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    raise Refused(error_text(chunk, "the stream ended with an error"))
                yield chunk

    def tenant(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """One call of OpenAI's API with the API key; its JSON object."""
        with self._call(method, f"/v1{path}", self._target.api_key, **options) as response:
            return _json(response)

    def content(self, path: str, offset: int) -> Iterator[bytes]:
        """What a GET of OpenAI's API answers with, from a byte on. Raises Unreachable if it breaks off."""
        headers = {"accept-encoding": "identity"}
        if offset:
            headers["range"] = f"bytes={offset}-"
        with self._call("GET", f"/v1{path}", self._target.api_key, headers=headers) as response:
            # Something between may not know ranges, and gives all of it again.
            known = 0 if response.status_code == 206 else offset
            for part in response.iter_bytes():
                if known < len(part):
                    yield part[known:]
                known = max(0, known - len(part))

    def ask(self, method: str, path: str, answer: MessageT, *, patience: float = 0.0, **options: Any) -> MessageT:
        """One call of the operator's API; its JSON as the message that it stands for.

        ``patience``: seconds for which it is asked again while a part of the platform says that it is restarting.
        """
        for response in self._patiently(patience, method, path, options):
            return as_message(_json(response), answer)
        raise AssertionError("a call gives an answer or raises")

    def organization(self, method: str, path: str, tenant: str, **options: Any) -> dict[str, Any]:
        """One call of OpenAI's administration API for ``tenant``; empty: that of the key."""
        headers = {"OpenAI-Organization": tenant} if tenant else {}
        with self._call(method, _ORGANIZATION + path, self._target.admin_key, headers=headers, **options) as response:
            return _json(response)

    def organization_list(self, path: str, tenant: str, **params: Any) -> Iterator[dict[str, Any]]:
        """All objects of one of its lists, page by page as they are asked for."""
        query: dict[str, Any] = {"limit": _PAGE, **params}
        while True:
            page = self.organization("GET", path, tenant, params=query)
            yield from page["data"]
            if not page["has_more"]:
                return
            query["after"] = page["last_id"]

    def lines(self, method: str, path: str, *, patience: float = 0.0, **options: Any) -> Iterator[dict[str, Any]]:
        """A call that answers with one JSON object a line. Raises Refused also for an error in the middle of it."""
        for response in self._patiently(patience, method, path, options):
            for line in response.iter_lines():
                if line.strip():
                    event = json.loads(line)
                    if "error" in event:
                        raise Refused(error_text(event, "the answer ended with an error"))
                    yield event

    def facts(self, path: str, *, patience: float = 0.0, **options: Any) -> dict[str, Any]:
        """The JSON object that a GET of the operator's API answers with, where it is no message."""
        for response in self._patiently(patience, "GET", path, options):
            return _json(response)
        raise AssertionError("a call gives an answer or raises")

    def file(self, path: str, *, patience: float = 0.0, **options: Any) -> Iterator[bytes]:
        """What a GET answers with, part by part. Raises Unreachable if it breaks off."""
        for response in self._patiently(patience, "GET", path, options):
            yield from response.iter_bytes()

    def _patiently(self, patience: float, method: str, path: str, options: dict[str, Any]) -> Iterator[httpx2.Response]:
        """The answer, once: that of the first try that is not told to come back later."""
        deadline = clock.monotonic() + patience
        while True:
            try:
                with self._call(method, _ADMIN + path, self._target.admin_key, **options) as response:
                    yield response
                    return
            except Refused as error:
                if error.retry_after is None or clock.monotonic() + error.retry_after > deadline:
                    raise
                time.sleep(error.retry_after)

    @contextmanager
    def _call(self, method: str, path: str, key: str, **options: Any) -> Iterator[httpx2.Response]:
        headers = {**options.pop("headers", {}), "authorization": f"Bearer {key}"}
        try:
            with self._http.stream(method, path, headers=headers, **options) as response:
                if response.status_code >= 400:
                    response.read()
                    raise _refusal(response)
                yield response
        except httpx2.ConnectError as error:
            why = Misnamed if _handshake_failed(error) else Unreachable
            raise why(_nobody(self._target, error)) from None
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise Misnamed(f"{self._target.url} is not a URL: {error}") from None
        except httpx2.TransportError as error:
            raise Unreachable(f"the connection to {self._target.url} broke: {error or type(error).__name__}") from None


def as_message(value: Mapping[str, Any], message: MessageT) -> MessageT:
    """``value`` as a protobuf message; fields of a newer server are ignored. Raises Refused if it is something else."""
    try:
        return ParseDict(dict(value), message, ignore_unknown_fields=True)
    except ParseError as error:
        raise Refused(f"the answer is not a {message.DESCRIPTOR.name}: {error}") from None


def error_text(body: Any, otherwise: str) -> str:
    """The message of OpenAI's error body, with its code if it has one."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not error.get("message"):
        return otherwise
    return f"{error['message']} ({error['code']})" if error.get("code") else str(error["message"])


def _json(response: httpx2.Response) -> dict[str, Any]:
    response.read()
    try:
        value: dict[str, Any] = response.json()
    except ValueError:
        raise Refused(f"{response.url} did not answer with JSON; is it an InferBus edge?") from None
    return value


def _refusal(response: httpx2.Response) -> Refused:
    otherwise = f"{response.request.method} {response.url} answered with status {response.status_code}"
    try:
        text = error_text(response.json(), otherwise)
    except ValueError:
        text = otherwise
    try:
        wait = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return Refused(text, status=response.status_code)
    return Refused(f"{text} Retry in {wait:g} s.", wait, response.status_code)


def _believed(ca: Path | None) -> ssl.SSLContext | bool:
    if ca is None:
        return True
    try:
        return trusting(ca)
    except TlsError as error:
        raise click.UsageError(str(error)) from None


def _handshake_failed(error: BaseException | None) -> bool:
    """httpx2 says ConnectError for a certificate that is not believed, as for a server that is not there."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None


def _nobody(target: Target, error: Exception) -> str:
    if _handshake_failed(error):
        return (
            f"{target.url} could not prove who it is ({error}); if its certificate is of an authority of your own, "
            "name that with --ca (or INFERBUS_CA)"
        )
    text = f"nobody answers at {target.url} ({error})"
    if target.home is None:
        return text
    return f"{text}; the stack on {target.home} is not running: inferbus up --home {target.home}"
