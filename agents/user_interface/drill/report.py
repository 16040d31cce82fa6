"""The report of drills: a table on the terminal, and a page with a drawing of each that needs nothing else."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from importlib import resources
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

from agents.user_interface import console
from agents.user_interface.drill.people import ATTACKER, HONEST, VICTIM
from agents.user_interface.exits import Ended, ExitCode, UsageProblem
from fabric.errors import NotFound

PASSED, FAILED, NOT_PLAYED = "passed", "FAILED", "not played"
JSON_FILE, HTML_FILE = "drills.json", "drills.html"
MAX_REPORT_BYTES = 64 * 1024 * 1024
COLUMNS = ("drill", "verdict", "slowest refusal", "processes gone", "honest calls", "failed")

_LANES = (ATTACKER, VICTIM, "defender", "umpire", HONEST)
_LEFT, _WIDTH, _HEIGHT = 150, 830, 24


def load(folder: Path) -> dict[str, Any]:
    """A report that was written before. Raises NotFound, UsageProblem."""
    path = folder / JSON_FILE
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_REPORT_BYTES))
        page(found)
    except FileNotFoundError:
        raise NotFound("REPORT_MISSING", f"there is no {path}; play drills with: grid drill run --all") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageProblem(f"{path} is not a report of drills; play them again: grid drill run --all") from None
    return found


def show(report: dict[str, Any], folder: Path, *, as_json: bool) -> None:
    """Write the page and print the table. Raises Ended if a drill is failed."""
    path = folder / HTML_FILE
    path.write_text(page(report), "utf-8")
    if as_json:
        console.print_json(report)
    else:
        console.print_table(COLUMNS, [_row(result) for result in report["drills"]])
        for result in report["drills"]:
            for failure in [*result["failures"], *([result["missing"]] if result["missing"] else [])]:
                console.warn(f"{result['name']}: {failure}")
        console.say(f"seed {report['seed']}, {report['seconds']:g} s; report: {path}")
    if not report["ok"]:
        raise Ended(ExitCode.FAILED)


def _row(result: dict[str, Any]) -> tuple[object, ...]:
    calls = result["honest_calls"]
    return (
        result["name"],
        result["verdict"],
        _ms(result["slowest_refusal_ms"]),
        _ms(result["stopped_ms"]),
        calls or "-",
        result["honest_failures"] if calls else "-",
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def page(report: dict[str, Any]) -> str:
    """The self-contained HTML report."""
    template = Template(resources.files("agents.user_interface.drill").joinpath("report.html").read_text("utf-8"))
    results = report["drills"]
    passed = sum(result["verdict"] == PASSED for result in results)
    rows = "".join(
        f'<tr><td><a href="#{_text(result["name"])}">{_text(result["name"])}</a></td>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in _row(result)[1:])
        + "</tr>"
        for result in results
    )
    return template.substitute(
        at=_text(report["at"]),
        replay=f"seed {report['seed']}, speed {report['speed']:g}, {report['seconds']:g} s",
        verdict=f"{passed} of {len(results)} drills passed",
        verdict_class="good" if report["ok"] else "bad",
        head="".join(f"<th>{column}</th>" for column in COLUMNS),
        rows=rows,
        drills="\n".join(map(_section, results)),
    )


def _section(result: dict[str, Any]) -> str:
    name, verdict = _text(result["name"]), result["verdict"]
    facts = [f"{result['seconds']:g} s in all"]
    if result["stopped_ms"] is not None:
        facts.append(f"last process gone after {_ms(result['stopped_ms'])}")
    if result["honest_calls"]:
        facts.append(f"{result['honest_calls']} calls of an honest user, {result['honest_failures']} failed")
    facts += [f"{what}: {value:g}" for what, value in result["figures"].items()]
    return (
        f'<section id="{name}"><h2>{name} <span class="{_verdict_class(verdict)}">{_text(verdict)}</span></h2>'
        f"<p>{_text(result['story'])}</p>"
        + "".join(f'<p class="bad">{_text(failure)}</p>' for failure in result["failures"])
        + "".join(
            f'<p class="note">{_text(note)}</p>' for note in [*result["notes"], *filter(None, [result["missing"]])]
        )
        + f'<p class="quiet">{_text("; ".join(facts))}</p>'
        + _drawing(result)
        + _story(result["marks"])
        + _verdicts(result["verdicts"])
        + "</section>"
    )


def _verdict_class(verdict: str) -> str:
    return {PASSED: "good", FAILED: "bad"}.get(verdict, "quiet")


def _acts(marks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What people did; what services answered is in the table of verdicts."""
    return [mark for mark in marks if not mark["service"]]


def _story(marks: list[dict[str, Any]]) -> str:
    """The numbered acts of the drawing, in words."""
    rows = "".join(
        f"<tr><td>{number}</td><td>{mark['at_ms'] / 1000:.3f} s</td>"
        f'<td class="{_css(mark["who"])}">{_text(mark["who"])}</td><td>{_text(mark["what"])}</td></tr>'
        for number, mark in enumerate(_acts(marks), 1)
    )
    return f'<table class="story">{rows}</table>' if rows else ""


def _verdicts(verdicts: list[dict[str, Any]]) -> str:
    """For each person and service what happened in turn, and the words of the last refusal."""
    rows = ""
    persons = dict.fromkeys(verdict["person"] for verdict in verdicts)
    for person in persons:
        for service in dict.fromkeys(v["service"] for v in verdicts if v["person"] == person):
            found = [v for v in verdicts if v["person"] == person and v["service"] == service]
            chips = "".join(_chip(next(same)) for _, same in groupby(found, key=_outcome))
            sentence = next((v["sentence"] for v in reversed(found) if v["sentence"]), "")
            rows += (
                f"<tr><td>{_text(service)}</td><td>{_text(person)}</td><td>{chips}</td><td>{_text(sentence)}</td></tr>"
            )
    head = "<tr><th>service</th><th>who</th><th>verdict</th><th>what the refused read</th></tr>"
    return f"<table>{head}{rows}</table>" if rows else ""


def _outcome(verdict: dict[str, Any]) -> str:
    return str(verdict["outcome"])


def _chip(verdict: dict[str, Any]) -> str:
    after = "" if verdict["after_ms"] is None else f" after {_ms(verdict['after_ms'])}"
    css = f"{verdict['outcome']}{'' if verdict['expected'] else ' wrong'}"
    return f'<span class="chip {css}">{verdict["outcome"]}{after}</span>'


def _drawing(result: dict[str, Any]) -> str:
    """A lane for each part with its numbered acts, then one for each service: green while it serves those whom it
    refuses in the end, red from the refusal on. Time from left to right."""
    acts, verdicts = _acts(result["marks"]), result["verdicts"]
    if not acts and not verdicts:
        return ""
    end = max([1.0, *(one["at_ms"] for one in [*acts, *verdicts])]) * 1.02
    known = {mark["who"] for mark in acts}
    people = [lane for lane in _LANES if lane in known] + sorted(known - set(_LANES))
    services = sorted({verdict["service"] for verdict in verdicts})
    bottom = _HEIGHT * (len(people) + len(services)) + 6

    def x(at_ms: float) -> float:
        return round(_LEFT + _WIDTH * at_ms / end, 1)

    parts = [f'<svg viewBox="0 0 {_LEFT + _WIDTH + 20} {bottom + 20}" role="img">']
    for mark in acts:
        if mark["who"] == "defender":
            at = x(mark["at_ms"])
            parts.append(f'<line class="guide" x1="{at}" y1="4" x2="{at}" y2="{bottom}"/>')
    for lane, who in enumerate(people):
        y = _HEIGHT * lane + 14
        parts.append(f'<text x="0" y="{y + 4}" class="{_css(who)}">{_text(who)}</text>')
        parts.append(f'<line class="lane" x1="{_LEFT}" y1="{y}" x2="{_LEFT + _WIDTH}" y2="{y}"/>')
        last = 0.0
        for number, mark in enumerate(acts, 1):
            if mark["who"] == who:
                last = at = max(x(mark["at_ms"]), last + 17)
                tip = _text(f"{mark['at_ms']:.0f} ms: {mark['what']}")
                parts.append(
                    f'<g class="{_css(who)}"><title>{tip}</title><circle cx="{at}" cy="{y}" r="8"/>'
                    f'<text class="number" x="{at}" y="{y + 3.5}">{number}</text></g>'
                )
    for lane, service in enumerate(services, len(people)):
        parts.append(_service_lane([v for v in verdicts if v["service"] == service], _HEIGHT * lane + 14, x, end))
    parts.append(
        f'<text x="{_LEFT}" y="{bottom + 12}">0 s</text>'
        f'<text x="{_LEFT + _WIDTH}" y="{bottom + 12}" text-anchor="end">{end / 1000:.1f} s</text></svg>'
    )
    return "".join(parts)


def _service_lane(verdicts: list[dict[str, Any]], y: int, x: Callable[[float], float], end: float) -> str:
    parts = [f'<text x="0" y="{y + 4}">{_text(verdicts[0]["service"])}</text>']
    parts.append(f'<line class="lane" x1="{_LEFT}" y1="{y}" x2="{_LEFT + _WIDTH}" y2="{y}"/>')
    refused = {v["person"] for v in verdicts if v["outcome"] == "refused"}
    bars = [v for v in verdicts if v["person"] in refused]
    for before, one, following in zip([None, *bars], bars, [*bars[1:], None], strict=False):
        at, until = x(one["at_ms"]), x(following["at_ms"] if following else end)
        parts.append(f'<line class="{one["outcome"]}" x1="{at}" y1="{y}" x2="{until}" y2="{y}"/>')
        if one["after_ms"] is not None and (before is None or before["outcome"] == "served"):
            anchor = f'x="{at - 7}" text-anchor="end"' if at > _LEFT + _WIDTH - 70 else f'x="{at + 7}"'
            parts.append(f'<text {anchor} y="{y - 4}" class="ms">{_ms(one["after_ms"])}</text>')
    for one in verdicts:
        tip = _text(f"{one['at_ms']:.0f} ms: {one['person']} is {one['outcome']} {one['sentence']}")
        parts.append(
            f'<circle class="{one["outcome"]}" cx="{x(one["at_ms"])}" cy="{y}" r="4"><title>{tip}</title></circle>'
        )
    return "".join(parts)


def _css(who: str) -> str:
    return who.replace(" ", "-")


def _text(value: object) -> str:
    return html.escape(str(value))
