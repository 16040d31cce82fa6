"""`grid drill run`: starts a grid of two sites (or uses one that is up), plays drills on it, writes the report."""

from __future__ import annotations

import asyncio
import html
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from agents.user_interface import console, deployment, endpoints
from agents.user_interface.demo.run import make_state_folder
from agents.user_interface.drill.drills import DRILLS, Drill
from agents.user_interface.drill.ground import Ground, Score
from agents.user_interface.exits import Ended, ExitCode, UsageProblem
from agents.user_interface.signals import terminate_as_interrupt, undisturbed
from agents.user_interface.users import administrator
from clusters import deploy, load

DESCRIPTION = """
[grid]
name = "drill"
mode = "lab"
organisation = "/O=Drill"
[[vo]]
name = "cms"
[[site]]
name = "EAST"
location = "the site that is attacked"
top = {}
information = {}
broker = {}
bookkeeping = {}
catalog = {}
storage = {}
gatekeeper = { lease_linger_s = 0.5 }
worker = { slots = 2 }
[[site]]
name = "WEST"
location = "its neighbour"
information = {}
storage = {}
gatekeeper = { lease_linger_s = 0.5 }
worker = { slots = 2 }
"""
DRILL_TIMEOUT_S = 180.0


def choose(names: Sequence[str], *, everything: bool) -> list[Drill]:
    """The drills to play. Raises UsageProblem."""
    known = {drill.name: drill for drill in DRILLS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageProblem(f"there is no drill {unknown[0][:80]!r}; grid drill list shows them all")
    if not names and not everything:
        raise UsageProblem("name a drill, or give --all; grid drill list shows them all")
    return list(DRILLS) if everything else [known[name] for name in dict.fromkeys(names)]


def run(names: Sequence[str], *, everything: bool, state: Path | None, out: Path, as_json: bool) -> None:
    """`grid drill run`. Exit 1 if a drill is failed. A grid started here is stopped, however it ends."""
    chosen = choose(names, everything=everything)
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with terminate_as_interrupt():
        if state is not None:
            results = asyncio.run(_play_all(chosen, state))
        else:
            own = make_state_folder()
            try:
                console.say("starting a grid of two sites")
                deploy.up(load.loads(DESCRIPTION, own / "drill.toml"), own)
                results = asyncio.run(_play_all(chosen, own))
            finally:
                with undisturbed():
                    deployment.stop(own)
                    deployment.remove(own)
    report = {"at": console.time_text(datetime.now(UTC)), "ok": all(r["ok"] for r in results), "drills": results}
    (out / "drills.json").write_text(json.dumps(report, indent=2), "utf-8")
    (out / "drills.html").write_text(page(report), "utf-8")
    if as_json:
        console.print_json(report)
    else:
        console.print_table(
            ("drill", "verdict", "slowest refusal", "processes gone", "honest calls", "failed"),
            [_row(result) for result in results],
        )
        for result in results:
            for failure in result["failures"]:
                console.warn(f"{result['name']}: {failure}")
        console.say(f"report: {out / 'drills.html'}")
    if not report["ok"]:
        raise Ended(ExitCode.FAILED)


def _row(result: dict[str, Any]) -> tuple[object, ...]:
    refused, stopped = result["refused_ms"], result["stopped_ms"]
    return (
        result["name"],
        "passed" if result["ok"] else "FAILED",
        f"{max(refused.values()):.0f} ms" if refused else "-",
        f"{stopped:.0f} ms" if stopped is not None else "-",
        result["honest_calls"] or "-",
        result["honest_failures"] if result["honest_calls"] else "-",
    )


async def _play_all(chosen: Sequence[Drill], state: Path) -> list[dict[str, Any]]:
    services = endpoints.read_file(state / endpoints.ENDPOINTS_FILE)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="gridfabric-drill-") as folder:
        async with Ground(services, administrator(state), state, Path(folder)) as ground:
            for drill in chosen:
                began = time.monotonic()
                console.say(f"{drill.name}: {drill.story}")
                try:
                    async with asyncio.timeout(DRILL_TIMEOUT_S):
                        await drill.play(ground)
                except Exception as error:  # one drill that breaks does not end the others
                    ground.expect(False, f"the drill broke: {type(error).__name__}: {error}")
                results.append(_result(drill, ground.score, time.monotonic() - began))
    return results


def _result(drill: Drill, score: Score, seconds: float) -> dict[str, Any]:
    return {
        "name": drill.name,
        "story": drill.story,
        "ok": not score.failures,
        "seconds": round(seconds, 1),
        **asdict(score),
    }


def page(report: dict[str, Any]) -> str:
    """The self-contained HTML report."""
    template = Template(resources.files(__package__).joinpath("report.html").read_text("utf-8"))
    passed = sum(result["ok"] for result in report["drills"])
    return template.substitute(
        at=html.escape(report["at"]),
        verdict=f"{passed} of {len(report['drills'])} drills passed",
        verdict_class="good" if report["ok"] else "bad",
        drills="\n".join(_section(result) for result in report["drills"]),
    )


def _section(result: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{result['refused_ms'][name]:.0f} ms</td>"
        f"<td>{html.escape(result['sentences'].get(name, ''))}</td></tr>"
        for name in sorted(result["refused_ms"], key=lambda name: result["refused_ms"][name])
    )
    table = f"<table><tr><th>service</th><th>refused after</th><th>what the refused read</th></tr>{rows}</table>"
    failures = "".join(f'<p class="bad">{html.escape(failure)}</p>' for failure in result["failures"])
    stopped = result["stopped_ms"]
    facts = [f"{result['seconds']} s in all"]
    facts += [f"last process of the attacker gone after {stopped:.0f} ms"] if stopped is not None else []
    if result["honest_calls"]:
        facts.append(f"{result['honest_calls']} calls of an honest user, {result['honest_failures']} failed")
    verdict = '<span class="good">passed</span>' if result["ok"] else '<span class="bad">FAILED</span>'
    return (
        f"<section><h2>{html.escape(result['name'])}: {verdict}</h2><p>{html.escape(result['story'])}</p>{failures}"
        f'<p class="quiet">{html.escape("; ".join(facts))}</p>{_drawing(result["marks"])}'
        f"{table if rows else ''}</section>"
    )


def _drawing(marks: list[dict[str, Any]]) -> str:
    """One line for each who, time from left to right."""
    if not marks:
        return ""
    lanes = list(dict.fromkeys(mark["who"] for mark in marks))
    end = max(max(mark["at_ms"] for mark in marks), 1.0)
    left, width, height = 130, 860, 26
    parts = [f'<svg viewBox="0 0 {left + width + 20} {height * len(lanes) + 22}" role="img">']
    for number, lane in enumerate(lanes):
        y = height * number + 14
        parts.append(f'<text x="0" y="{y + 4}">{html.escape(lane)}</text>')
        parts.append(f'<line x1="{left}" y1="{y}" x2="{left + width}" y2="{y}" stroke="#d5dbe2"/>')
        for mark in marks:
            if mark["who"] == lane:
                x = left + width * mark["at_ms"] / end
                tip = html.escape(f"{mark['at_ms']:.0f} ms {mark['service']} {mark['what']}")
                parts.append(
                    f'<circle cx="{x:.1f}" cy="{y}" r="5" class="lane{number % 4}"><title>{tip}</title></circle>'
                )
    y = height * len(lanes) + 14
    parts.append(
        f'<text x="{left}" y="{y}">0</text><text x="{left + width - 40}" y="{y}">{end / 1000:.1f} s</text></svg>'
    )
    return "".join(parts)
