"""How a tenant's console looks: what a brand may hold, and what everybody is told of it. Pure."""

import base64
import re
import struct
from typing import Any
from xml.etree import ElementTree

from inferbus.bus.v1.brand_pb2 import BrandRecord
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_edge.core.organization_rules import checked_name

MAX_LOGO_BYTES = 64 << 10
# The logo, and short texts.
MAX_BRAND_BYTES = MAX_LOGO_BYTES + (4 << 10)
FIELDS = ("display_name", "logo", "accent_light", "accent_dark", "domain")
HOUSE = BrandRecord(display_name="InferBus")
# What text in an accent's colour stands on (styles.css of the console), and the contrast that WCAG 2 asks of text (AA).
GROUNDS = {"accent_light": ("#ffffff", "#f4f6f8"), "accent_dark": ("#171b21", "#0f1216")}
LEAST_CONTRAST = 4.5
# Of an image that is small as a file and not in memory.
_MAX_PIXELS = 2048
_PNG, _SVG = "image/png", "image/svg+xml"
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_SVG_ROOT = "{http://www.w3.org/2000/svg}svg"
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def checked_brand(given: BrandRecord) -> BrandRecord:
    """``given`` with what follows from it. Raises InferBusError INVALID_ARGUMENT that names the field."""
    checked = BrandRecord(
        display_name=checked_name(given.display_name, "display_name", required=True),
        logo=given.logo,
        logo_type=_logo_type(given.logo),
        domain=_domain(given.domain),
    )
    for name in GROUNDS:
        setattr(checked, name, _accent(getattr(given, name), name))
    return checked


def shown(brand: BrandRecord) -> dict[str, Any]:
    """What anybody may know who opens the console under the brand's domain."""
    told: dict[str, Any] = {"display_name": brand.display_name}
    if brand.logo:
        told["logo"] = f"data:{brand.logo_type};base64,{base64.b64encode(brand.logo).decode()}"
    return told | {name: getattr(brand, name) for name in GROUNDS if getattr(brand, name)}


def host_of(header: str) -> str:
    """The name in a Host header, without its port: what a brand's domain is compared with."""
    name = header.strip().lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0].removesuffix(".")


def contrast(one: str, other: str) -> float:
    """Of two colours as #rrggbb, by WCAG 2: 1 (equal) to 21 (black and white)."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _accent(given: str, name: str) -> str:
    colour = given.lower()
    if not colour:
        return ""
    if not _COLOUR.fullmatch(colour):
        raise invalid(f"'{name}' is a colour as #2456c7.", param=name)
    least, ground = min((contrast(colour, ground), ground) for ground in GROUNDS[name])
    if least < LEAST_CONTRAST:
        wanted = "darker" if name == "accent_light" else "lighter"
        raise invalid(
            f"'{name}' has a contrast of {int(least * 10) / 10} to 1 on {ground}, and text needs {LEAST_CONTRAST}: "
            f"choose a {wanted} colour.",
            param=name,
        )
    return colour


def _domain(given: str) -> str:
    domain = given.lower().removesuffix(".")
    if domain and (len(domain) > 253 or not all(_LABEL.fullmatch(label) for label in domain.split("."))):
        raise invalid(
            "'domain' is a host's name as console.example.com: ASCII (xn--… for others), no scheme, port or path.",
            param="domain",
        )
    return domain


def _logo_type(logo: bytes) -> str:
    if not logo:
        return ""
    if len(logo) > MAX_LOGO_BYTES:
        raise invalid(f"'logo' has {len(logo)} bytes; {MAX_LOGO_BYTES} are the most.", param="logo")
    if logo.startswith(_PNG_HEAD):
        return _checked_png(logo)
    return _checked_svg(logo)


def _checked_png(logo: bytes) -> str:
    if len(logo) < 24 or logo[12:16] != b"IHDR":
        raise _no_logo("This PNG has no header.")
    width, height = struct.unpack(">II", logo[16:24])
    if not (0 < width <= _MAX_PIXELS and 0 < height <= _MAX_PIXELS):
        raise _no_logo(f"This PNG has {width} x {height} pixels; {_MAX_PIXELS} each way are the most.")
    return _PNG


def _checked_svg(logo: bytes) -> str:
    """It is only ever shown as an image, where no browser runs scripts; here it has none at all."""
    # Without a document type there are no entities, so it is as large as it looks.
    if b"<!DOCTYPE" in logo or b"<!ENTITY" in logo:
        raise _no_logo("An SVG with a document type is not taken: delete its <!DOCTYPE …>.")
    try:
        root = ElementTree.fromstring(logo.decode())  # noqa: S314 (no document type: nothing to expand or to fetch)
    except (ElementTree.ParseError, UnicodeDecodeError, ValueError):
        raise _no_logo("It is neither a PNG nor a well-formed SVG in UTF-8.") from None
    if root.tag != _SVG_ROOT:
        raise _no_logo("It is neither a PNG nor an SVG (<svg xmlns=…>).")
    for part in root.iter():
        name = part.tag.rpartition("}")[2].lower() if isinstance(part.tag, str) else ""
        if name in ("script", "foreignobject") or any(key.lower().startswith("on") for key in part.attrib):
            raise _no_logo("An SVG with scripts, handlers or foreign objects is not taken.")
    return _SVG


def _no_logo(message: str) -> InferBusError:
    return invalid(f"'logo' cannot be used. {message}", param="logo")
