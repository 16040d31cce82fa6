"""Sites on a map, coloured by status: GeoJSON (RFC 7946), KML 2.2 and a drawing in SVG. Pure."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath

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
        f"<Placemark><name>{_xml(site.name)}</name>"
        f"<description>{_xml(f'{site.status.value}: {_said(site)}')}</description>"
        f"<styleUrl>#{site.status.value}</styleUrl><Point><coordinates>{longitude:g},{latitude:g}</coordinates></Point>"
        "</Placemark>\n"
        for site, longitude, latitude in placed(sites)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<kml xmlns="http://www.opengis.net/kml/2.2"><Document>'
        f"<name>gridfabric</name>\n{styles}{marks}</Document></kml>\n"
    )


def _xml(text: str) -> str:
    """Text for XML 1.0, which has no place for control characters."""
    return html.escape("".join(letter if letter.isprintable() else "?" for letter in text))


_WORLD = (-170.0, -50.0, 180.0, 75.0)
_EUROPE = (-12.0, 34.0, 45.0, 66.0)
"""West, south, east, north."""
_WIDTH, _MARGIN = 1000, 8


def svg(sites: Iterable[Site]) -> str:
    """The world, and Europe below it where most sites are: a net of meridians and parallels, and a point for each."""
    places = placed(sites)
    world, height = _panel(places, _WORLD, 30, 0, 3.5)
    in_europe = [one for one in places if _EUROPE[0] <= one[1] <= _EUROPE[2] and _EUROPE[1] <= one[2] <= _EUROPE[3]]
    parts = [world]
    if len(in_europe) > 1:
        europe, height = _panel(in_europe, _EUROPE, 5, height + _MARGIN, 5)
        parts.append(europe)
    legend = _legend(places, height + 20)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height + 34}" role="img" '
        f'font-family="sans-serif" font-size="10">\n{"".join(parts)}{legend}</svg>\n'
    )


def _panel(
    places: Sequence[tuple[Site, float, float]],
    bounds: tuple[float, float, float, float],
    step: int,
    top: float,
    radius: float,
) -> tuple[str, float]:
    """One map, and where it ends below. Plate carrée, true to scale at its middle parallel."""
    west, south, east, north = bounds
    scale = (_WIDTH - 2 * _MARGIN) / (east - west)
    stretch = 1.5 if bounds == _EUROPE else 1.0  # one degree of longitude is shorter than one of latitude
    top += _MARGIN
    bottom = top + (north - south) * scale * stretch

    def x(longitude: float) -> float:
        return round(_MARGIN + (longitude - west) * scale, 1)

    def y(latitude: float) -> float:
        return round(bottom - (latitude - south) * scale * stretch, 1)

    lines = [
        f'<rect x="{x(west)}" y="{top:.1f}" width="{x(east) - x(west):.1f}" height="{bottom - top:.1f}" '
        'fill="#eef3f8"/>\n'
    ]
    for degrees in range(-180, 181, step):
        if west <= degrees <= east:
            lines.append(_line(x(degrees), top, x(degrees), bottom))
            lines.append(_label(x(degrees) + 2, bottom - 3, degrees, "E", "W"))
        if south <= degrees <= north:
            lines.append(_line(x(west), y(degrees), x(east), y(degrees)))
            lines.append(_label(x(west) + 2, y(degrees) - 2, degrees, "N", "S"))
    lines += [
        f'<circle cx="{x(longitude)}" cy="{y(latitude)}" r="{radius:g}" fill="{COLOURS[site.status]}" stroke="#33414f" '
        f'stroke-width=".6"><title>{_xml(f"{site.name}, {site.location}: {site.status.value}: {_said(site)}")}</title>'
        "</circle>\n"
        for site, longitude, latitude in places
        if west <= longitude <= east and south <= latitude <= north
    ]
    return "".join(lines), bottom


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="#c7d3df" stroke-width=".7"/>\n'


def _label(x: float, y: float, degrees: int, plus: str, minus: str) -> str:
    side = plus if degrees > 0 else minus if degrees < 0 else ""
    return f'<text x="{x:g}" y="{y:g}" fill="#8494a5">{abs(degrees)}°{side}</text>\n'


def _legend(places: Sequence[tuple[Site, float, float]], y: float) -> str:
    shown = [status for status in Status if any(site.status is status for site, _, _ in places)]
    return "".join(
        f'<circle cx="{14 + 90 * i}" cy="{y - 3:g}" r="4" fill="{COLOURS[status]}"/><text x="{22 + 90 * i}" y="{y:g}" '
        f'fill="#33414f">{status.value} {sum(site.status is status for site, _, _ in places)}</text>\n'
        for i, status in enumerate(shown)
    )


FORMATS: Mapping[str, Callable[[Iterable[Site]], str]] = {
    ".geojson": geojson,
    ".json": geojson,
    ".kml": kml,
    ".svg": svg,
}


def by_name(path: PurePath) -> Callable[[Iterable[Site]], str] | None:
    """How to write a map into a file of this name; None: no format that is known."""
    return FORMATS.get(path.suffix.lower())
