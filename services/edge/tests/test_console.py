"""The console's files as the edge serves them, and brands: what is taken, and who sees which."""

import asyncio
import base64
import gzip
import hashlib
import json
import re
import struct
import zlib
from contextlib import suppress
from importlib import resources
from types import ModuleType
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.brand_pb2 import BrandRecord
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.registry import Registry
from inferbus_edge.core.brand import GROUNDS, LEAST_CONTRAST, MAX_LOGO_BYTES, checked_brand, contrast, host_of, shown
from inferbus_edge.routes.console import POLICY
from inferbus_runtime.errors import InferBusError
from inferbus_stack.nats import NatsServer
from yarl import URL

CONSOLE = resources.files("inferbus_edge").joinpath("console")
STYLES = CONSOLE.joinpath("styles.css").read_text(encoding="utf-8")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><path d="M0 0h1v1z"/></svg>'
BRAND = "/inferbus/v1/tenants/{}/brand"


def png(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def brand(**fields: Any) -> dict[str, Any]:
    return {"display_name": "Acme AI", **fields}


# --- files ------------------------------------------------------------------------------------------------------------


async def test_the_page_and_its_parts_are_served_to_anybody(edge: Any) -> None:
    async with aiohttp.ClientSession(edge.url) as bare:
        page = await bare.get("/console")
        assert page.url.path == "/console/"
        text = await page.text()
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        parts = re.findall(r'(?:src|href)="([^"]+)"', text)
        assert len(parts) > 3
        for part in parts:
            found = await bare.get(f"/console/{part}")
            assert found.status == 200, part
            assert found.headers["Content-Security-Policy"] == POLICY
            assert found.headers["X-Content-Type-Options"] == "nosniff"
        assert (await bare.get("/console/main.js")).headers["Content-Type"] == "text/javascript; charset=utf-8"


async def test_only_its_own_files_are_there(edge: Any) -> None:
    async with aiohttp.ClientSession(edge.url) as bare:
        for path in ("lib", "lib/", "x", "index.html/", "main.py", "brand.JSON", "..%2Fapp.py"):
            assert (await bare.get(f"/console/{path}")).status == 404, path
        assert (await bare.post("/console/main.js")).status == 405
        assert (await bare.head("/console/main.js")).status == 200


async def test_a_page_has_an_address_without_a_fragment(edge: Any) -> None:
    """Of every page that main.js knows: one without its line in the table would be no page either."""
    main = CONSOLE.joinpath("main.js").read_text(encoding="utf-8")
    names = [json.loads(f'"{one}"') for one in re.findall(r'name: "([^"]+)", title: ', main)]
    assert {"analytics", "requests", "batches", "usage", "play", "brand"} <= set(names)
    async with aiohttp.ClientSession(edge.url) as bare:
        for name in names:
            led = await bare.get(f"/console/{name}", allow_redirects=False)
            assert (led.status, led.headers["Location"]) == (307, f"/console/#/{name}")
            assert led.headers["Content-Security-Policy"] == POLICY
        # Its parts and its query come along, and nothing that is no part of an address.
        for asked, there in (
            ("batches/batch_1", "batches/batch_1"), ("usage?from=-6h&by=a%26b", "usage?from=-6h&by=a%26b"),
            ("play/%0d%0aX:%201", "play/%0D%0AX%3A%201"), ("play/%23/x", "play/%23/x"),
        ):  # fmt: skip
            url = URL(f"{edge.url}/console/{asked}", encoded=True)
            led = await bare.get(url, allow_redirects=False)
            assert led.headers["Location"] == f"/console/#/{there}"
            assert "X" not in led.headers
        for none in ("play.js", "Play", "player", "plays/"):
            assert (await bare.get(f"/console/{none}", allow_redirects=False)).status == 404, none


async def test_dots_in_a_path_lead_nowhere(edge: Any) -> None:
    """As bytes on the wire, which no client has made a path of its own of."""
    host, port = edge.url.removeprefix("http://").split(":")
    for path in ("/console/../app.py", "/console/%2e%2e/app.py", "/console/lib/../../auth.py", "/console//etc/passwd"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 404"), path


async def test_a_file_is_fetched_once_and_small(edge: Any) -> None:
    content = CONSOLE.joinpath("main.js").read_bytes()
    async with aiohttp.ClientSession(edge.url, auto_decompress=False) as bare:
        plain = await bare.get("/console/main.js", headers={"Accept-Encoding": "gzip;q=0, br"})
        packed = await bare.get("/console/main.js", headers={"Accept-Encoding": "br, gzip"})
        assert await plain.read() == content
        assert gzip.decompress(await packed.read()) == content
        assert packed.headers["Content-Encoding"] == "gzip"
        assert plain.headers["ETag"] != packed.headers["ETag"]
        for first in (plain, packed):
            known = {"If-None-Match": f'"other", W/{first.headers["ETag"]}'}
            again = await bare.get("/console/main.js", headers={**known, "Accept-Encoding": "gzip"})
            assert again.status == (304 if first is packed else 200)
            assert again.headers["Content-Security-Policy"] == POLICY


def test_nothing_in_it_needs_a_weaker_policy_or_another_host() -> None:
    own = [one for folder in ("", "lib", "pages") for one in CONSOLE.joinpath(folder).iterdir() if one.is_file()]
    assert len(own) > 10
    for one in own:
        text = one.read_text(encoding="utf-8")
        assert not re.search(r"(inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
        if one.name.endswith(".html"):
            assert not re.search(r"\sstyle=|\son\w+=|<script>|<style", text)
        outside = {url for url in re.findall(r"https?://[^\s\"'`)]+", text) if not url.startswith("http://www.w3.org/")}
        assert outside == set(), one.name


def test_the_vendored_files_are_those_of_the_manifest() -> None:
    vendor = CONSOLE.joinpath("vendor")
    manifest = json.loads(vendor.joinpath("manifest.json").read_text())
    found = {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in vendor.iterdir()}
    del found["manifest.json"]
    assert found == manifest["sha256"]
    assert "MIT License" in vendor.joinpath("uplot.LICENSE.txt").read_text()


# --- colours ----------------------------------------------------------------------------------------------------------


def colours(name: str) -> tuple[str, str]:
    """On light and on dark ground, as styles.css has them."""
    (pair,) = re.findall(rf"--{name}: light-dark\((#\w+), (#\w+)\)", STYLES)
    return pair


def test_texts_of_the_console_can_be_read() -> None:
    house = tuple(re.search(rf"--brand-{name}: (#\w+)", STYLES)[1] for name in ("light", "dark"))  # type: ignore[index]
    for at in (0, 1):
        grounds = [colours(name)[at] for name in ("ground", "surface", "raised")]
        for name in ("text", "muted", "good", "warn", "bad"):
            least = min(contrast(colours(name)[at], ground) for ground in grounds)
            assert least >= LEAST_CONTRAST, (name, at, least)
        assert contrast(house[at], colours("on-accent")[at]) >= LEAST_CONTRAST
        assert min(contrast(house[at], ground) for ground in grounds[:2]) >= LEAST_CONTRAST
        for number in range(1, 9):  # lines and bars, not texts: 3 to 1
            assert contrast(colours(f"series-{number}")[at], colours("surface")[at]) >= 3, (number, at)


def test_brands_are_checked_on_the_grounds_that_there_are() -> None:
    for at, name in enumerate(("accent_light", "accent_dark")):
        assert set(GROUNDS[name]) == {colours("surface")[at], colours("ground")[at]}
        # A button in this colour has the other ground's text on it.
        assert contrast(colours("on-accent")[at], GROUNDS[name][0]) < 1.2


@given(st.sampled_from(sorted(GROUNDS)), st.integers(0, 0xFFFFFF))
def test_an_accent_is_taken_if_and_only_if_it_can_be_read(name: str, value: int) -> None:
    colour = f"#{value:06x}"
    enough = all(contrast(colour, ground) >= LEAST_CONTRAST for ground in GROUNDS[name])
    given_brand = BrandRecord(display_name="A", **{name: colour.upper()})
    if enough:
        assert getattr(checked_brand(given_brand), name) == colour
    else:
        with pytest.raises(InferBusError, match="contrast of") as refused:
            checked_brand(given_brand)
        assert refused.value.param == name


@given(st.integers(0, 0xFFFFFF), st.integers(0, 0xFFFFFF))
def test_contrast_is_symmetric_and_bounded(one: int, other: int) -> None:
    first, second = f"#{one:06x}", f"#{other:06x}"
    assert contrast(first, second) == contrast(second, first)
    assert 1 <= contrast(first, second) <= 21.0001
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


# --- what a brand may hold --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("logo", "kind"), [(SVG, "image/svg+xml"), (png(64, 32), "image/png"), (b"", "")])
def test_logos(logo: bytes, kind: str) -> None:
    checked = checked_brand(BrandRecord(display_name="A", logo=logo))
    assert checked.logo_type == kind
    told = shown(checked)
    if logo:
        assert told["logo"] == f"data:{kind};base64,{base64.b64encode(logo).decode()}"
    else:
        assert "logo" not in told


@pytest.mark.parametrize(
    "logo",
    [
        b"GIF89a", b"<html></html>", b"<svg/>", SVG[:-3], SVG + b"<x/>", b"\xff\xfe", png(4000, 1), png(0, 1),
        b"\x89PNG\r\n\x1a\n", SVG + b" " * MAX_LOGO_BYTES,
        b'<!DOCTYPE svg [<!ENTITY a "aaaa">]>' + SVG,
        SVG.replace(b"<path", b"<script>alert(1)</script><path"),
        SVG.replace(b"<path", b'<path onload="alert(1)"'),
        SVG.replace(b"<path", b"<foreignObject/><path"),
    ],
)  # fmt: skip
def test_what_is_no_logo(logo: bytes) -> None:
    with pytest.raises(InferBusError) as refused:
        checked_brand(BrandRecord(display_name="A", logo=logo))
    assert refused.value.param == "logo"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_logo_or_refused(logo: bytes) -> None:
    for content in (logo, b"\x89PNG\r\n\x1a\n" + logo, b"<svg" + logo):
        with suppress(InferBusError):
            checked_brand(BrandRecord(display_name="A", logo=content))


@pytest.mark.parametrize(
    "domain", ["a b", "https://x.example", "x.example/", "x.example:80", "-x", "x..y", "é.example"]
)
def test_what_is_no_domain(domain: str) -> None:
    with pytest.raises(InferBusError, match="'domain' is"):
        checked_brand(BrandRecord(display_name="A", domain=domain))


@pytest.mark.parametrize(
    ("header", "host"),
    [("AI.Acme.Example:8443", "ai.acme.example"), ("acme.", "acme"), ("[::1]:80", "[::1]"), ("", ""), ("x", "x")],
)
def test_the_host_of_a_header(header: str, host: str) -> None:
    assert host_of(header) == host


# --- whose brand ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def admin(edge: Any, rig: ModuleType) -> Any:
    async with rig.session(edge, rig.ADMIN_KEY) as one:
        for tenant in ("branded", "other"):
            await one.post("/inferbus/v1/tenants", json={"tenant_id": tenant})
        yield one
        for tenant in ("branded", "other"):
            await one.delete(BRAND.format(tenant))


async def seen(edge: Any, host: str) -> dict[str, Any]:
    async with aiohttp.ClientSession(edge.url) as bare:
        answer = await bare.get("/console/brand.json", headers={"Host": host})
        assert "Host" in answer.headers["Vary"]
        return dict(await answer.json())


async def test_a_brand_is_shown_under_its_domain_only(edge: Any, admin: aiohttp.ClientSession) -> None:
    wanted = brand(domain="AI.branded.example", accent_light="#0B6E4F", logo=base64.b64encode(SVG).decode())
    made = (await (await admin.put(BRAND.format("branded"), json=wanted)).json())["brand"]
    assert made["domain"] == "ai.branded.example"
    assert made["logo_type"] == "image/svg+xml"
    told = await seen(edge, "ai.branded.example:8443")
    assert told.keys() == {"display_name", "logo", "accent_light"}  # nothing of the tenant's id
    for host in ("x.example", "branded.example", "127.0.0.1", "ai.branded.example.x"):
        assert await seen(edge, host) == {"display_name": "InferBus"}
    listed = (await (await admin.get("/inferbus/v1/brands")).json())["brands"]
    assert [(one["tenant_id"], "logo" in one) for one in listed] == [("branded", False)]
    assert (await (await admin.get(BRAND.format("branded"))).json())["brand"] == made
    assert (await admin.delete(BRAND.format("branded"))).status == 200
    assert await seen(edge, "ai.branded.example") == {"display_name": "InferBus"}
    assert (await admin.delete(BRAND.format("branded"))).status == 404


async def test_a_domain_is_one_tenants(edge: Any, admin: aiohttp.ClientSession) -> None:
    assert (await admin.put(BRAND.format("branded"), json=brand(domain="one.example"))).status == 200
    taken = await admin.put(BRAND.format("other"), json=brand(display_name="Other", domain="One.Example"))
    assert taken.status == 409
    assert (await taken.json())["error"]["code"] == "domain_taken"
    assert (await admin.put(BRAND.format("branded"), json=brand(domain="two.example"))).status == 200
    assert (
        await admin.put(BRAND.format("other"), json=brand(display_name="Other", domain="one.example"))
    ).status == 200
    assert (await seen(edge, "one.example"))["display_name"] == "Other"
    assert (await seen(edge, "two.example"))["display_name"] == "Acme AI"


async def test_of_two_who_claimed_a_domain_at_once_the_first_has_it(edge: Any, nats_server: NatsServer) -> None:
    """As two edges may store them, which have not heard of each other yet."""
    async with connect(BusConfig(nats_server.url, "two-edges")) as bus:
        brands = Registry(bus, "brands", BrandRecord)
        await brands.start()
        for tenant, second in (("late", 9), ("early", 5), ("later", 9)):
            record = BrandRecord(tenant_id=tenant, display_name=tenant, domain="twice.example")
            record.create_time.seconds = second
            await brands.put(tenant, record)
        async with asyncio.timeout(5):
            while (await seen(edge, "twice.example"))["display_name"] != "early":
                await asyncio.sleep(0.01)
        await brands.delete("early")
        async with asyncio.timeout(5):
            while (await seen(edge, "twice.example"))["display_name"] != "late":
                await asyncio.sleep(0.01)
        for tenant in ("late", "later"):
            await brands.delete(tenant)
        await brands.stop()


async def test_only_an_operator_brands(edge: Any, rig: ModuleType, admin: aiohttp.ClientSession) -> None:
    made = await admin.post("/inferbus/v1/keys", json={"tenant_id": "branded", "scopes": ["tenant_admin"]})
    async with rig.session(edge, (await made.json())["secret"]) as tenant:
        assert (await tenant.put(BRAND.format("branded"), json=brand())).status == 403
        assert (await tenant.get(BRAND.format("branded"))).status == 403
        assert (await tenant.get("/inferbus/v1/brands")).status == 403
        own = (await (await tenant.get("/inferbus/v1/key")).json())["key"]
        assert (own["tenant_id"], own["scopes"]) == ("branded", ["tenant_admin"])
    async with aiohttp.ClientSession(edge.url) as bare:
        assert (await bare.put(BRAND.format("branded"), json=brand())).status == 401
        assert (await bare.get("/inferbus/v1/key")).status == 401


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "display_name"), (brand(tenant_id="x"), "tenant_id"), (brand(logo_type="image/png"), "logo_type"),
        (brand(accent_dark="red"), "accent_dark"), (brand(display_name=" x"), "display_name"),
    ],
)  # fmt: skip
async def test_what_is_refused(admin: aiohttp.ClientSession, body: dict[str, Any], param: str) -> None:
    answer = await admin.put(BRAND.format("branded"), json=body)
    assert answer.status == 400
    assert (await answer.json())["error"]["param"] == param
    assert (await admin.put(BRAND.format("nobody"), json=brand())).status == 404
