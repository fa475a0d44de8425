"""The paper of an invoice: A4, its margins and colours, its fonts, and how words and tables are set on it."""

import io
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image as Picture
from PIL import UnidentifiedImageError
from reportlab.lib.colors import HexColor
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFError, TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Flowable, Frame, PageTemplate, Paragraph
from reportlab.platypus import Table as Grid

MARGIN, FOOT = 18 * mm, 24 * mm
WIDTH = A4[0] - 2 * MARGIN
INK, SOFT, RULE, SHADE = HexColor("#1b1f24"), HexColor("#5c6672"), HexColor("#c9d0d8"), HexColor("#f2f4f7")
_MAX_PIXELS = 4_000_000


@dataclass(frozen=True, slots=True)
class Fonts:
    """Names of fonts that reportlab knows. ``covers_all``: not only what Western European languages need."""

    regular: str = "Helvetica"
    bold: str = "Helvetica-Bold"
    covers_all: bool = False

    @classmethod
    def load(cls, regular: Path | None, bold: Path | None) -> "Fonts":
        """TrueType files, which are embedded; without any, Helvetica. Raises ValueError for what is none."""
        if regular is None:
            return cls()
        names = {"InvoiceRegular": regular, "InvoiceBold": bold or regular}
        for name, path in names.items():
            try:
                pdfmetrics.registerFont(TTFont(name, str(path)))
            except (TTFError, OSError, struct.error, IndexError) as error:  # the last two: it is cut off
                raise ValueError(f"{path} is no TrueType font: {error}") from error
        return cls("InvoiceRegular", "InvoiceBold", covers_all=True)


def is_png(data: bytes) -> bool:
    try:
        with Picture.open(io.BytesIO(data), formats=("PNG",)) as picture:
            small = picture.width * picture.height <= _MAX_PIXELS
            picture.verify()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return False
    return small


class Paper:
    """Sets words in the ``fonts``."""

    def __init__(self, fonts: Fonts) -> None:
        self._fonts = fonts

    def text(
        self, text: str, *, size: float = 9, bold: bool = False, soft: bool = False, right: bool = False
    ) -> Paragraph:
        return Paragraph(escape(self.said(text)), self.style(size, bold=bold, soft=soft, right=right))

    def style(
        self, size: float, *, bold: bool = False, soft: bool = False, right: bool = False, indent: float = 0
    ) -> ParagraphStyle:
        return ParagraphStyle(
            "text", fontName=self._fonts.bold if bold else self._fonts.regular, fontSize=size, leading=size * 1.3,
            textColor=SOFT if soft else INK, alignment=TA_RIGHT if right else 0, leftIndent=indent,
        )  # fmt: skip

    def said(self, text: str) -> str:
        """What the font has; "?" for the rest."""
        return text if self._fonts.covers_all else text.encode("cp1252", "replace").decode("cp1252")

    @staticmethod
    def grid(
        rows: list[list[Any]], widths: tuple[float, ...], style: Sequence[tuple[Any, ...]], repeated: int = 0
    ) -> Grid:
        plain = [("LEFTPADDING", (0, 0), (-1, -1), 3), ("RIGHTPADDING", (0, 0), (-1, -1), 3)]
        return Grid(rows, colWidths=widths, style=[*plain, *style], repeatRows=repeated)

    def printed(self, story: Callable[[], Iterable[Flowable]], title: str, foot: str) -> bytes:
        """The document. ``foot`` stands at the foot of each page."""
        # Drawn twice: only then it is known how many pages there are.
        _, pages = self._drawn(story(), title, foot, 0)
        return self._drawn(story(), title, foot, pages)[0]

    def _drawn(self, story: Iterable[Flowable], title: str, foot: str, pages: int) -> tuple[bytes, int]:
        """The document, and how many pages it has."""
        out = io.BytesIO()
        frame = Frame(MARGIN, FOOT, WIDTH, A4[1] - MARGIN - FOOT, leftPadding=0, rightPadding=0)
        document = BaseDocTemplate(out, pagesize=A4, title=title, author="", creator="InferBus", invariant=1)
        drawn = partial(self._foot, foot, pages)
        document.addPageTemplates([PageTemplate("page", [frame], onPage=drawn)])
        document.build(list(story))
        return out.getvalue(), document.page

    def _foot(self, text: str, pages: int, canvas: Canvas, document: BaseDocTemplate) -> None:
        canvas.saveState()
        canvas.setStrokeColor(RULE)
        canvas.line(MARGIN, FOOT - 7 * mm, A4[0] - MARGIN, FOOT - 7 * mm)
        canvas.setFont(self._fonts.regular, 7.5)
        canvas.setFillColor(SOFT)
        canvas.drawString(MARGIN, FOOT - 11 * mm, self.said(text)[:110])
        canvas.drawRightString(A4[0] - MARGIN, FOOT - 11 * mm, f"Page {document.page} of {pages}")
        canvas.restoreState()
