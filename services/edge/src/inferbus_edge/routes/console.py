"""/console/: the pages that operators and tenants' administrators look at. Static files, and the brand of the domain.
/console/<page> leads to the page of that name, whose address is a fragment.

The files are read once, at the start, so no path that is asked leads anywhere but to one of them. They hold nothing of
a tenant: the pages are a client of the API, with the key that is entered into them.
"""

import gzip
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from urllib.parse import quote

import orjson
from aiohttp import web
from inferbus_dialect.errors import of_status

from inferbus_edge.brands import BrandDesk
from inferbus_edge.core.brand import shown
from inferbus_edge.server import Call, Routes, own_headers

PATH = "/console/"
BRAND_PATH = f"{PATH}brand.json"
INDEX = "index.html"
MAIN = "main.js"
# Nothing but what this edge serves; no script or style in the page itself, so nothing that gets into it runs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept, and asked for by its ETag each time: an edge that was updated never serves half of an older console.
    "Cache-Control": "no-cache",
}
# A line of the table of pages in main.js.
_PAGE = re.compile(rb'^  \{ name: "(\w+)", title: ', re.MULTILINE)
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class File:
    """``packed``: the body in gzip, empty where that is no shorter."""

    body: bytes
    packed: bytes
    content_type: str
    tag: str


class ConsoleRoutes:
    def __init__(self, brands: BrandDesk) -> None:
        self._brands = brands
        self._files = dict(_files(resources.files("inferbus_edge").joinpath("console")))
        self.pages = frozenset(name.decode() for name in _PAGE.findall(self._files[MAIN].body))
        """As they are called in an address."""

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", PATH.removesuffix("/"), self.redirect)
        routes.add("GET", PATH, self.index, whole=True)
        routes.add("GET", PATH, self.file)
        routes.add("GET", BRAND_PATH, self.brand)

    async def redirect(self, call: Call) -> web.StreamResponse:
        return web.Response(status=308, headers={**own_headers(call.request_id), **HEADERS, "Location": PATH})

    async def index(self, call: Call) -> web.StreamResponse:
        return _answer(call, self._files[INDEX])

    async def file(self, call: Call) -> web.StreamResponse:
        found = self._files.get(call.tail)
        if found is None and call.tail.partition("/")[0] in self.pages:
            query = call.http.rel_url.raw_query_string
            there = f"{PATH}#/{quote(call.tail)}{'?' if query else ''}{query}"
            return web.Response(status=307, headers={**own_headers(call.request_id), **HEADERS, "Location": there})
        if found is None:
            raise of_status(404)
        return _answer(call, found)

    async def brand(self, call: Call) -> web.StreamResponse:
        """Of the domain that the page was opened under, which the Host header names."""
        body = orjson.dumps(shown(self._brands.of_host(call.http.headers.get("Host", ""))))
        return _answer(call, _file(body, "json"), vary="Host, Accept-Encoding")


def _files(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, File]]:
    """(path below the console's folder, file) of all of known kinds."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        elif entry.name.rpartition(".")[2] in _TYPES:
            yield f"{prefix}{entry.name}", _file(entry.read_bytes(), entry.name.rpartition(".")[2])


def _file(body: bytes, kind: str) -> File:
    packed = gzip.compress(body, mtime=0)
    tag = hashlib.sha256(body).hexdigest()[:32]
    return File(body, packed if len(packed) < len(body) else b"", _TYPES[kind], tag)


def _answer(call: Call, file: File, vary: str = "Accept-Encoding") -> web.Response:
    packed = bool(file.packed) and _accepts_gzip(call.http.headers.get("Accept-Encoding", ""))
    tag = f'"{file.tag}-gzip"' if packed else f'"{file.tag}"'
    headers = {**own_headers(call.request_id), **HEADERS, "ETag": tag, "Vary": vary}
    known = {one.strip().removeprefix("W/") for one in call.http.headers.get("If-None-Match", "").split(",")}
    if tag in known or "*" in known:
        return web.Response(status=304, headers=headers)
    if packed:
        headers["Content-Encoding"] = "gzip"
    return web.Response(
        body=file.packed if packed else file.body, headers={**headers, "Content-Type": file.content_type}
    )


def _accepts_gzip(header: str) -> bool:
    for one in header.lower().split(","):
        coding, _, parameters = one.partition(";")
        if coding.strip() == "gzip":
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
