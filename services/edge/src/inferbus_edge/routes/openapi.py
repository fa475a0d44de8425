"""GET /openapi.json, the API's own description, and GET /docs, a page that shows it. Both without a key: they say
nothing about tenants."""

import base64
import hashlib
import re
from importlib import resources
from importlib.metadata import version

import orjson
from aiohttp import web

from inferbus_edge.core.openapi import document
from inferbus_edge.server import Call, Routes, json_response, own_headers

DOCUMENT_PATH, PAGE_PATH = "/openapi.json", "/docs"
_INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


class OpenApiRoutes:
    """Made after all others: the document is of the routes that there are, written once."""

    def __init__(self) -> None:
        self._document = b""
        page = resources.files("inferbus_edge.routes").joinpath("openapi.html").read_text(encoding="utf-8")
        self._page = page.encode()
        self._policy = policy(page)

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", DOCUMENT_PATH, self.document)
        routes.add("GET", PAGE_PATH, self.page)
        served = [(method, path) for method, path, _ in routes.all()]
        self._document = orjson.dumps(document(served, version("inferbus-edge")))

    async def document(self, call: Call) -> web.StreamResponse:
        return json_response(self._document, call.request_id)

    async def page(self, call: Call) -> web.StreamResponse:
        headers = {
            "Content-Security-Policy": self._policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            **own_headers(call.request_id),
        }
        return web.Response(body=self._page, content_type="text/html", charset="utf-8", headers=headers)


def policy(page: str) -> str:
    """Nothing runs and nothing is loaded but the page's own style and script, and the document."""
    allowed: dict[str, list[str]] = {"style": [], "script": []}
    for kind, text in _INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        allowed[kind].append(f"'sha256-{digest}'")
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src {' '.join(allowed['style'])}",
            f"script-src {' '.join(allowed['script'])}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
