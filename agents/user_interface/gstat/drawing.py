"""Areas, lines, words and points on a sheet, written as SVG or as PNG (RFC 2083). Pure."""

from __future__ import annotations

import html
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH = 1000
"""Of a sheet, in pixels."""


@dataclass(frozen=True)
class Area:
    """A polygon, filled."""

    corners: Sequence[tuple[float, float]]
    fill: str


@dataclass(frozen=True)
class Line:
    """From one point to another."""

    x1: float
    y1: float
    x2: float
    y2: float
    colour: str


@dataclass(frozen=True)
class Words:
    """Text from (x, y) on, which is below its first letter. A PNG has capitals and digits only."""

    x: float
    y: float
    text: str
    colour: str


@dataclass(frozen=True)
class Spot:
    """A round mark with an edge; SVG shows `title` to whoever points at it."""

    x: float
    y: float
    radius: float
    fill: str
    title: str = ""


Shape = Area | Line | Words | Spot

EDGE = "#33414f"


def xml(text: str) -> str:
    """Text for XML 1.0, which has no place for control characters."""
    return html.escape("".join(letter if letter.isprintable() else "?" for letter in text))


def svg(shapes: Iterable[Shape], height: float) -> str:
    """The shapes one upon the other."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'font-family="sans-serif" font-size="10">\n{"".join(map(_element, shapes))}</svg>\n'
    )


def _element(shape: Shape) -> str:
    match shape:
        case Area(corners, fill):
            return f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in corners)}" fill="{fill}"/>\n'
        case Line(x1, y1, x2, y2, colour):
            where = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
            return f'<line {where} stroke="{colour}" stroke-width=".7"/>\n'
        case Words(x, y, text, colour):
            return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}">{xml(text)}</text>\n'
        case Spot(x, y, radius, fill, title):
            return (
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}" stroke="{EDGE}" stroke-width=".6">'
                f"<title>{xml(title)}</title></circle>\n"
            )


def png(shapes: Iterable[Shape], height: float) -> bytes:
    """The same as pixels, white below; what reaches over the sheet is cut off."""
    canvas = _Canvas(WIDTH, math.ceil(height))
    for shape in shapes:
        match shape:
            case Area(corners, fill):
                canvas.area(corners, fill)
            case Line(x1, y1, x2, y2, colour):
                canvas.line(x1, y1, x2, y2, colour)
            case Words(x, y, text, colour):
                canvas.words(x, y, text, colour)
            case Spot(x, y, radius, fill):
                canvas.disc(x, y, radius + 0.6, EDGE)
                canvas.disc(x, y, radius - 0.4, fill)
    return canvas.png()


class _Canvas:
    """Pixels as places in a palette."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._rows = [bytearray(width) for _ in range(height)]
        self._palette = {"#ffffff": 0}

    def _run(self, y: int, left: float, right: float, colour: int) -> None:
        """The pixels of a row whose middles are between."""
        first, last = max(0, math.ceil(left - 0.5)), min(self._width, math.ceil(right - 0.5))
        if 0 <= y < self._height and first < last:
            self._rows[y][first:last] = bytes((colour,)) * (last - first)

    def _number(self, colour: str) -> int:
        return self._palette.setdefault(colour, len(self._palette))

    def area(self, corners: Sequence[tuple[float, float]], fill: str) -> None:
        colour = self._number(fill)
        edges = [(a, b) for a, b in zip(corners, [*corners[1:], corners[0]], strict=True) if a[1] != b[1]]
        top, bottom = min(y for _, y in corners), max(y for _, y in corners)
        for row in range(max(0, int(top)), min(self._height, int(bottom) + 1)):
            middle = row + 0.5
            crossed = sorted(
                x1 + (middle - y1) * (x2 - x1) / (y2 - y1)
                for (x1, y1), (x2, y2) in edges
                if min(y1, y2) <= middle < max(y1, y2)
            )
            for left, right in zip(crossed[::2], crossed[1::2], strict=True):
                self._run(row, left, right, colour)

    def line(self, x1: float, y1: float, x2: float, y2: float, name: str) -> None:
        colour = self._number(name)
        steps = max(1, round(max(abs(x2 - x1), abs(y2 - y1))))
        for step in range(steps + 1):
            x = math.floor(x1 + (x2 - x1) * step / steps)
            self._run(math.floor(y1 + (y2 - y1) * step / steps), x, x + 1, colour)

    def disc(self, x: float, y: float, radius: float, fill: str) -> None:
        colour = self._number(fill)
        for row in range(math.floor(y - radius), math.ceil(y + radius)):
            half = math.sqrt(max(0.0, radius**2 - (row + 0.5 - y) ** 2))
            self._run(row, x - half, x + half, colour)

    def words(self, x: float, y: float, text: str, name: str) -> None:
        colour = self._number(name)
        for place, letter in enumerate(text.upper()):
            rows = f"{_LETTERS.get(letter, 0):05o}"
            for down, bits in enumerate(rows):
                for right in range(3):
                    if int(bits) & 4 >> right:
                        at = math.floor(x) + 4 * place + right
                        self._run(math.floor(y) - 5 + down, at, at + 1, colour)

    def png(self) -> bytes:
        head = struct.pack(">IIBBBBB", self._width, self._height, 8, 3, 0, 0, 0)  # eight bits, palette
        colours = b"".join(bytes.fromhex(colour[1:]) for colour in self._palette)
        pixels = zlib.compress(b"".join(b"\0" + row for row in self._rows), 9)
        chunks = ((b"IHDR", head), (b"PLTE", colours), (b"IDAT", pixels), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )


_LETTERS = {
    "A": 0o25755, "B": 0o65656, "C": 0o34443, "D": 0o65556, "E": 0o74647, "F": 0o74644, "G": 0o34553, "H": 0o55755,
    "I": 0o72227, "J": 0o11152, "K": 0o55655, "L": 0o44447, "M": 0o57755, "N": 0o65555, "O": 0o25552, "P": 0o65644,
    "Q": 0o25573, "R": 0o65655, "S": 0o34216, "T": 0o72222, "U": 0o55557, "V": 0o55552, "W": 0o55775, "X": 0o55255,
    "Y": 0o55222, "Z": 0o71247, "0": 0o75557, "1": 0o26227, "2": 0o71747, "3": 0o71717, "4": 0o55711, "5": 0o74717,
    "6": 0o74757, "7": 0o71111, "8": 0o75757, "9": 0o75717, "°": 0o65600,
}  # fmt: skip
"""Three by five pixels: an octal digit is a row, from above."""
