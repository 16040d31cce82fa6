"""The small log that `grid bench replay` uses by default: made by a seed, so that anybody can make it again.

    python -m bench.synthetic_trace > agents/user_interface/replay/synthetic.swf

Arrivals in bursts of one user each (a production manager's, or a few jobs of somebody's own), run times log-normal, as
the logs of grids have them; twelve users of three groups of unlike size. One processor a job.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

SEED = 2005
JOBS = 200
GROUPS = {1: (1, 2, 3, 4, 5, 6), 2: (7, 8, 9, 10), 3: (11, 12)}
"""Users of each group."""
BURST_PAUSE_S = 300.0
RUN_MEDIAN_S, RUN_SPREAD = 600.0, 1.0


def lines(seed: int = SEED, jobs: int = JOBS) -> Iterator[str]:
    """The log, line by line."""
    dice = random.Random(seed)
    yield "; Version: 2.2"
    yield f"; Computer: none; made by bench/synthetic_trace.py, seed {seed}"
    yield f"; MaxJobs: {jobs}"
    at_s = 0.0
    number = 0
    while number < jobs:
        at_s += dice.expovariate(1 / BURST_PAUSE_S)
        group = dice.choices(list(GROUPS), weights=[6, 3, 1])[0]
        user = dice.choice(GROUPS[group])
        for _ in range(min(jobs - number, dice.choice([1, 1, 2, 3, 5, 20]))):
            number += 1
            run_s = min(7200, max(1, round(dice.lognormvariate(0.0, RUN_SPREAD) * RUN_MEDIAN_S)))
            fields = [number, round(at_s), -1, run_s, 1, -1, -1, 1, -1, -1, -1, user, group, -1, -1, -1, -1, -1]
            yield " ".join(map(str, fields))
            at_s += dice.random() * 2


if __name__ == "__main__":
    print("\n".join(lines()))
