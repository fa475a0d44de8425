"""ClickHouse's HTTP interface: one statement, its answer line by line."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import click
import httpx2

_TIMEOUT = httpx2.Timeout(connect=5.0, read=600.0, write=60.0, pool=5.0)


@dataclass(frozen=True, slots=True)
class Login:
    """Where a ClickHouse is and who asks."""

    url: str
    user: str
    password: str = field(repr=False)
    database: str = "inferbus"


class QueryFailed(click.ClickException):
    """ClickHouse's own words, or that it does not answer."""

    exit_code = 2


@contextmanager
def ask(login: Login, statement: str, default_format: str) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The answer's real format and its bytes as they come. ``default_format`` holds unless the statement names one.

    Raises QueryFailed with the server's message.
    """
    headers = {"X-ClickHouse-User": login.user, "X-ClickHouse-Key": login.password}
    params = {"database": login.database, "default_format": default_format}
    try:
        with (
            httpx2.Client(timeout=_TIMEOUT, trust_env=False) as http,
            http.stream("POST", login.url, params=params, headers=headers, content=statement.encode()) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise QueryFailed(response.text.strip() or f"ClickHouse answered with status {response.status_code}")
            yield response.headers.get("x-clickhouse-format", default_format), response.iter_bytes()
    except httpx2.ConnectError as error:
        raise QueryFailed(f"no ClickHouse answers at {login.url} ({error})") from None
    except httpx2.TransportError as error:
        raise QueryFailed(f"the connection to ClickHouse broke: {error or type(error).__name__}") from None
