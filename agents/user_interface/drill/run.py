"""`grid drill run`: plays drills on a grid of two sites (or one that is up) and writes the report."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agents.user_interface import console, endpoints
from agents.user_interface.connection import administrator
from agents.user_interface.drill import lab, report
from agents.user_interface.drill.drills import DRILLS, Drill
from agents.user_interface.drill.ground import Ground, NotHereError
from agents.user_interface.drill.score import Score
from agents.user_interface.exits import UsageProblem
from agents.user_interface.signals import terminate_as_interrupt
from fabric.errors import GridError

DRILL_TIMEOUT_S = 180.0
PEOPLE_PER_DRILL = 3
"""Members of the first VO, asked for before the first clock runs; a drill that needs more waits for them."""
PEOPLE_OF_SECOND_VO = 8
MAX_SEED = 1_000_000
SPEEDS = (0.1, 10.0)


def choose(names: Sequence[str], *, everything: bool) -> list[Drill]:
    """The drills to play. Raises UsageProblem."""
    known = {drill.name: drill for drill in DRILLS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageProblem(f"there is no drill {unknown[0][:80]!r}; grid drill list shows them all")
    if not names and not everything:
        raise UsageProblem("name a drill, or give --all; grid drill list shows them all")
    return list(DRILLS) if everything else [known[name] for name in dict.fromkeys(names)]


def run(
    names: Sequence[str],
    *,
    everything: bool,
    state: Path | None,
    out: Path,
    seed: int | None,
    speed: float,
    as_json: bool,
) -> None:
    """`grid drill run`. Exit 1 if a drill is failed. A grid started here is stopped, however it ends."""
    chosen = choose(names, everything=everything)
    if not SPEEDS[0] <= speed <= SPEEDS[1]:
        raise UsageProblem(f"--speed is from {SPEEDS[0]:g} to {SPEEDS[1]:g}, not {speed:g}")
    seed = random.SystemRandom().randrange(MAX_SEED) if seed is None else seed
    random.Random(seed).shuffle(chosen)
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with terminate_as_interrupt(), lab.running(state, speed) as folder:
        results = asyncio.run(_play_all(chosen, folder, seed, speed))
    order = [drill.name for drill in DRILLS]
    results.sort(key=lambda result: order.index(result["name"]))
    found = {
        "at": console.time_text(datetime.now(UTC)),
        "ok": all(result["verdict"] != report.FAILED for result in results),
        "seed": seed,
        "speed": speed,
        "played": [drill.name for drill in chosen],
        "seconds": round(time.monotonic() - began, 1),
        "drills": results,
    }
    (out / report.JSON_FILE).write_text(json.dumps(found, indent=2), "utf-8")
    report.show(found, out, as_json=as_json)


async def _play_all(chosen: Sequence[Drill], state: Path, seed: int, speed: float) -> list[dict[str, Any]]:
    services = endpoints.read_file(state / endpoints.ENDPOINTS_FILE)
    with tempfile.TemporaryDirectory(prefix="gridfabric-drill-") as folder:
        ground = Ground(services, administrator(state), state, Path(folder), seed=seed, speed=speed)
        async with ground:
            await ground.enrol(
                dict(zip(services.vos, (PEOPLE_PER_DRILL * len(chosen), PEOPLE_OF_SECOND_VO), strict=False))
            )
            return [await _play(drill, ground) for drill in chosen]


async def _play(drill: Drill, ground: Ground) -> dict[str, Any]:
    began = time.monotonic()
    console.say(f"{drill.name}: {drill.story}")
    missing = ""
    score = Score()
    try:
        async with asyncio.timeout(DRILL_TIMEOUT_S), ground.playing(drill.name) as score:
            await drill.play(ground)
    except NotHereError as why:
        missing = str(why)
    except GridError as error:
        ground.expect(False, f"the drill broke: {error.reason}: {error.sentence}")
    except Exception as error:  # one drill that breaks does not end the others
        ground.expect(False, f"the drill broke: {type(error).__name__}: {error}")
    return {
        "name": drill.name,
        "story": drill.story,
        "verdict": report.FAILED if score.failures else report.NOT_PLAYED if missing else report.PASSED,
        "missing": missing,
        "seconds": round(time.monotonic() - began, 1),
        "slowest_refusal_ms": score.slowest_refusal_ms,
        **{name: value for name, value in asdict(score).items() if name != "began"},
    }
