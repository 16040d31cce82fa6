"""Sites on a map, coloured by status: GeoJSON (RFC 7946), KML 2.2 and a drawing in SVG or PNG. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath

from agents.user_interface.gstat import coast, drawing
from agents.user_interface.gstat.drawing import Area, Line, Shape, Spot, Words, xml
from agents.user_interface.gstat.model import Site, Status

COLOURS: Mapping[Status, str] = {
    Status.OK: "#7fbf4d",
    Status.INFO: "#7fbf4d",
    Status.NOTE: "#d9d32e",
    Status.WARN: "#f0a030",
    Status.MAINT: "#a3a3a3",
    Status.NA: "#aab3ff",
    Status.ERROR: "#e0523d",
}
"""After the colours of EGEE's Site Functional Tests."""


def placed(sites: Iterable[Site]) -> list[tuple[Site, float, float]]:
    """Sites with their longitude and latitude; the worst last, so that it is drawn on top."""
    found = [
        (site, site.longitude, site.latitude)
        for site in sites
        if site.longitude is not None
        and site.latitude is not None
        and -180 <= site.longitude <= 180
        and -90 <= site.latitude <= 90
    ]
    return sorted(found, key=lambda one: one[0].status.rank)


def _said(site: Site) -> str:
    return "; ".join(finding.sentence for finding in site.findings) or "all is well"


def geojson(sites: Iterable[Site]) -> str:
    """A FeatureCollection of points."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [longitude, latitude]},
            "properties": {
                "name": site.name,
                "region": site.region,
                "location": site.location,
                "status": site.status.value,
                "marker-color": COLOURS[site.status],
                "cpus": site.cpus,
                "findings": [finding.sentence for finding in site.findings],
            },
        }
        for site, longitude, latitude in placed(sites)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}, indent=1, ensure_ascii=False) + "\n"


def kml(sites: Iterable[Site]) -> str:
    """A document with one placemark for each site and one style for each status."""
    styles = "".join(
        f'<Style id="{status.value}"><IconStyle><color>ff{colour[5:7]}{colour[3:5]}{colour[1:3]}</color></IconStyle>'
        "</Style>\n"
        for status, colour in COLOURS.items()
    )
    marks = "".join(
        f"<Placemark><name>{xml(site.name)}</name>"
        f"<description>{xml(f'{site.status.value}: {_said(site)}')}</description>"
        f"<styleUrl>#{site.status.value}</styleUrl><Point><coordinates>{longitude:g},{latitude:g}</coordinates></Point>"
        "</Placemark>\n"
        for site, longitude, latitude in placed(sites)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<kml xmlns="http://www.opengis.net/kml/2.2"><Document>'
        f"<name>gridfabric</name>\n{styles}{marks}</Document></kml>\n"
    )


_WORLD = (-170.0, -50.0, 180.0, 75.0)
_EUROPE = (-12.0, 34.0, 45.0, 66.0)
"""West, south, east, north."""
_MARGIN = 8
_SEA, _LAND, _NET, _WORDS = "#eef3f8", "#dfe3d6", "#c7d3df", "#8494a5"


def svg(sites: Iterable[Site]) -> str:
    """The drawing, with what is wrong with a site shown to whoever points at it."""
    return drawing.svg(*_sheet(sites))


def png(sites: Iterable[Site]) -> bytes:
    """The drawing in pixels."""
    return drawing.png(*_sheet(sites))


def _sheet(sites: Iterable[Site]) -> tuple[list[Shape], float]:
    """The world, and Europe below it where most sites are: land, a net of meridians and parallels, and a point for
    each; and the height of it all."""
    places = placed(sites)
    shapes, height = _panel(places, _WORLD, 30, 0, 3.5)
    in_europe = [one for one in places if _EUROPE[0] <= one[1] <= _EUROPE[2] and _EUROPE[1] <= one[2] <= _EUROPE[3]]
    if len(in_europe) > 1:
        europe, height = _panel(in_europe, _EUROPE, 5, height + _MARGIN, 5)
        shapes += europe
    return [*shapes, *_legend(places, height + 20)], height + 34


def _panel(
    places: Sequence[tuple[Site, float, float]],
    bounds: tuple[float, float, float, float],
    step: int,
    top: float,
    radius: float,
) -> tuple[list[Shape], float]:
    """One map, and where it ends below. Plate carrée, true to scale at its middle parallel."""
    west, south, east, north = bounds
    scale = (drawing.WIDTH - 2 * _MARGIN) / (east - west)
    stretch = 1.5 if bounds == _EUROPE else 1.0  # one degree of longitude is shorter than one of latitude
    top += _MARGIN
    bottom = top + (north - south) * scale * stretch

    def x(longitude: float) -> float:
        return _MARGIN + (min(max(longitude, west), east) - west) * scale

    def y(latitude: float) -> float:
        return bottom - (min(max(latitude, south), north) - south) * scale * stretch

    def area(corners: Iterable[tuple[float, float]], fill: str) -> Area:
        return Area([(x(longitude), y(latitude)) for longitude, latitude in corners], fill)

    shapes: list[Shape] = [area(((west, south), (west, north), (east, north), (east, south)), _SEA)]
    shapes += [area(corners, _LAND) for corners in coast.LAND]
    shapes += [area(corners, _SEA) for corners in coast.SEAS]
    for degrees in range(-180, 181, step):
        if west <= degrees <= east:
            shapes.append(Line(x(degrees), top, x(degrees), bottom, _NET))
            shapes.append(Words(x(degrees) + 2, bottom - 3, _degrees(degrees, "E", "W"), _WORDS))
        if south <= degrees <= north:
            shapes.append(Line(x(west), y(degrees), x(east), y(degrees), _NET))
            shapes.append(Words(x(west) + 2, y(degrees) - 2, _degrees(degrees, "N", "S"), _WORDS))
    shapes += [
        Spot(
            x(longitude), y(latitude), radius, COLOURS[site.status],
            f"{site.name}, {site.location}: {site.status.value}: {_said(site)}",
        )
        for site, longitude, latitude in places
        if west <= longitude <= east and south <= latitude <= north
    ]  # fmt: skip
    return shapes, bottom


def _degrees(degrees: int, plus: str, minus: str) -> str:
    return f"{abs(degrees)}°{plus if degrees > 0 else minus if degrees < 0 else ''}"


def _legend(places: Sequence[tuple[Site, float, float]], y: float) -> Iterator[Shape]:
    shown = [status for status in Status if any(site.status is status for site, _, _ in places)]
    for i, status in enumerate(shown):
        count = sum(site.status is status for site, _, _ in places)
        yield Spot(14 + 90 * i, y - 3, 4, COLOURS[status])
        yield Words(22 + 90 * i, y, f"{status.value} {count}", drawing.EDGE)


FORMATS: Mapping[str, Callable[[Iterable[Site]], str | bytes]] = {
    ".geojson": geojson,
    ".json": geojson,
    ".kml": kml,
    ".svg": svg,
    ".png": png,
}


def by_name(path: PurePath) -> Callable[[Iterable[Site]], str | bytes] | None:
    """How to write a map into a file of this name; None: no format that is known."""
    return FORMATS.get(path.suffix.lower())
