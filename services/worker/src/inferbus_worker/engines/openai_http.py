"""The connection to an upstream: its address, our key, and what is asked of it besides generations."""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from inferbus_runtime import clock
from pydantic import SecretStr

from inferbus_worker.core.start_faults import start_failed
from inferbus_worker.engine import Generation, Prompt
from inferbus_worker.engines.openai_errors import Kind, UpstreamError, failure_of

NOBODY = Generation(b"", Prompt(""))
"""Whose fault it is not, what is asked at the start."""
_MAX_ERROR = 64 * 1024
_MAX_ANSWER = 256 * 1024 * 1024


class UpstreamHttp:
    """Raises UpstreamError, RefusedError and TooLongError (see :mod:`.openai_errors`)."""

    def __init__(self, base_url: str, key: str | None, connect_seconds: float, ca: Path | None) -> None:
        self._base = base_url.rstrip("/")
        self._connect_seconds = connect_seconds
        headers = {"Content-Type": "application/json", "User-Agent": "inferbus"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        tls = ssl.create_default_context(cafile=ca) if ca is not None else True
        # A server may close an idle connection at the moment when it is used again. Those that cost little are made
        # anew each time; TLS to a far one costs more than that.
        if self._base.startswith("https:"):
            connector = aiohttp.TCPConnector(limit=0, ssl=tls, keepalive_timeout=15)
        else:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds, connect=connect_seconds)
        # A redirect would carry the key elsewhere.
        self._session = aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout)

    async def close(self) -> None:
        await self._session.close()

    def post(self, path: str, body: bytes) -> Any:
        """The request as aiohttp's context manager: dropping it is the cancel. Raises aiohttp.ClientError."""
        return self._session.post(f"{self._base}/{path}", data=body, allow_redirects=False)

    async def checked(self, response: aiohttp.ClientResponse, generation: Generation) -> None:
        """Raises what its status says, if that is no 200."""
        if response.status == 200:
            return
        body = b""
        async for part in response.content.iter_any():
            body += part
            if len(body) > _MAX_ERROR:
                break
        raise failure_of(response.status, response.headers, body, generation, clock.now_us() / 1e6)

    async def ask(
        self, path: str, body: Mapping[str, Any] | bytes, seconds: float, generation: Generation = NOBODY
    ) -> Any:
        """A whole answer as JSON."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        return await self._answer("POST", f"{self._base}/{path}", data, seconds, generation)

    async def ask_root(self, path: str, body: Mapping[str, Any], seconds: float) -> Any:
        """Of what servers have beside OpenAI's API, which ends in /v1."""
        url = f"{self._base.removesuffix('/v1')}/{path}"
        return await self._answer("POST", url, orjson.dumps(body), seconds, NOBODY)

    async def models(self, seconds: float) -> list[dict[str, Any]]:
        """What it serves."""
        answer = await self._answer("GET", f"{self._base}/models", None, seconds, NOBODY)
        models = answer.get("data") if isinstance(answer, dict) else answer
        return [one for one in models or () if isinstance(one, dict) and isinstance(one.get("id"), str)]

    async def answers(self) -> bool:
        """Whether anybody is there, whatever he says, within the time that a connection may take."""
        try:
            await self.models(self._connect_seconds)
        except UpstreamError as failure:
            return failure.kind is not Kind.GONE
        except Exception:  # noqa: BLE001  (an answer that we do not understand is an answer)
            return True
        return True

    async def _answer(self, method: str, url: str, data: bytes | None, seconds: float, generation: Generation) -> Any:
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=self._connect_seconds)
        try:
            async with self._session.request(
                method, url, data=data, timeout=timeout, allow_redirects=False
            ) as response:
                await self.checked(response, generation)
                return orjson.loads(await _read(response))
        except orjson.JSONDecodeError as error:
            raise UpstreamError(Kind.BROKEN, "an answer that is no JSON") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpstreamError(Kind.GONE, repr(error)) from error


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts, size = list[bytes](), 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > _MAX_ANSWER:
            raise UpstreamError(Kind.BROKEN, "an answer is too long")
        parts.append(part)
    return b"".join(parts)


def key_of(key: SecretStr | None, file: Path | None) -> str | None:
    """The API key; a file is read at each start, so that a renewed one counts from there on. Raises InferBusError."""
    if key is not None:
        return key.get_secret_value()
    if file is None:
        return None
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise start_failed(f"the file of the API key cannot be read: {error}") from error
