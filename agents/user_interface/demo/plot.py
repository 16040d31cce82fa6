"""The demo's plot: charged multiplicity and pseudorapidity, as PNG bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BINS = 30


def preload(cache: Path) -> None:
    """Load matplotlib, which takes a second, while nothing else is to do."""
    os.environ.setdefault("MPLCONFIGDIR", str(cache))
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.figure


def draw(histogram: Mapping[str, Any], *, title: str, cache: Path) -> bytes:
    """A PNG of the analysis job's histograms. `cache` is where matplotlib may write its font list."""
    preload(cache)
    from matplotlib.figure import Figure

    counts = {int(n): c for n, c in histogram["charged_multiplicity"].items()}
    events = int(histogram["events"])
    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    top = max(counts, default=1) + 1
    width = max(1, -(-top // BINS))
    edges = [i * width for i in range(-(-top // width) + 1)]
    heights = [0] * (len(edges) - 1)
    for multiplicity, count in counts.items():
        heights[multiplicity // width] += count
    centres = [edge + width / 2 for edge in edges[:-1]]
    left.stairs(heights, edges, fill=True, color="#4477aa", alpha=0.35)
    left.stairs(heights, edges, color="#224477")
    left.errorbar(centres, heights, yerr=[h**0.5 for h in heights], fmt="none", color="#224477", linewidth=1)
    left.axvline(histogram["mean_charged_multiplicity"], color="#cc6644", linestyle="--", linewidth=1.2)
    left.text(
        0.97, 0.95, f"{events:,} events\nmean {histogram['mean_charged_multiplicity']:.1f}",
        transform=left.transAxes, ha="right", va="top",
    )  # fmt: skip
    left.set(xlabel="charged particles in an event", ylabel=f"events / {width}", xlim=(0, edges[-1]), ylim=(0, None))
    eta = histogram["pseudorapidity"]
    step = (eta["high"] - eta["low"]) / len(eta["bins"])
    eta_edges = [eta["low"] + i * step for i in range(len(eta["bins"]) + 1)]
    density = [count / step / events if events else 0 for count in eta["bins"]]
    right.stairs(density, eta_edges, color="#224477", fill=True, alpha=0.35)
    right.stairs(density, eta_edges, color="#224477")
    right.set(xlabel="pseudorapidity $\\eta$", ylabel="charged particles / event / unit $\\eta$", ylim=(0, None))
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
