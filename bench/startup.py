"""Section `startup`: how long a grid takes to be all green, what it holds in memory, what it uses when idle."""

from __future__ import annotations

import time
from collections import defaultdict

import psutil

from bench.lab import run_pids, state_folder, uss
from bench.measure import Bench, Table, show
from clusters import deploy, load
from clusters.deploy import AgentStatus, RunningGrid

PRESETS = ("lab", "edg-2003")
MIB = 1 << 20
SETTLE_S = 3.0
UP_S = 180.0


def run(bench: Bench) -> None:
    """Each preset several times from nothing; the last time it is watched while it has nothing to do."""
    for preset in PRESETS:
        times = []
        for trial in range(bench.trials):
            with state_folder(bench, f"{preset}-{trial}") as state:
                began = time.perf_counter()
                running = deploy.up(load.load(preset), state, deadline_s=UP_S)
                times.append(time.perf_counter() - began)
                if trial == bench.trials - 1:
                    _watch(bench, preset, running)
        title = f"grid up {preset} ({len(running.agents)} agents), from nothing to all green"
        bench.add(f"up_{preset}", title, "s", times)


def _watch(bench: Bench, preset: str, running: RunningGrid) -> None:
    time.sleep(SETTLE_S)
    pids = [agent.pid for agent in running.agents]
    others = [pid for pid in run_pids(running.state) if pid not in pids]
    seconds = bench.size(20, 5)
    before = {pid: _cpu(pid) for pid in (*pids, *others)}
    time.sleep(seconds)
    idle = {pid: 100 * (_cpu(pid) - was) / seconds for pid, was in before.items()}
    memory = {pid: uss(pid) / MIB for pid in (*pids, *others)}
    bench.add(
        f"memory_{preset}", f"memory per agent, {preset}", "MiB", [memory[pid] for pid in pids], note="unique set"
    )
    bench.add(f"idle_{preset}", f"idle CPU per agent, {preset}", "%", [idle[pid] for pid in pids], note="of one core")
    all_memory, all_idle = sum(memory.values()), sum(idle.values())
    bench.add(f"memory_all_{preset}", f"memory of the whole grid with Ray, {preset}", "MiB", [all_memory])
    bench.add(f"idle_all_{preset}", f"idle CPU of the whole grid with Ray, {preset}", "%", [all_idle])
    bench.tables.append(_by_kind(preset, running.agents, memory, idle, others))


def _by_kind(
    preset: str,
    agents: tuple[AgentStatus, ...],
    memory: dict[int, float],
    idle: dict[int, float],
    others: list[int],
) -> Table:
    kinds: dict[str, list[int]] = defaultdict(list)
    for agent in agents:
        kinds[agent.kind].append(agent.pid)
    rows = [
        (kind, str(len(pids)), show(_mean(memory, pids)), f"{_mean(idle, pids):.2f}")
        for kind, pids in sorted(kinds.items())
    ]
    total = (sum(memory[pid] for pid in others), sum(idle[pid] for pid in others))
    rows.append((f"Ray ({len(others)} processes)", "1", show(total[0]), f"{total[1]:.2f}"))
    return Table(f"{preset}: one agent of each kind", ("kind", "agents", "USS MiB", "idle CPU %"), tuple(rows))


def _mean(values: dict[int, float], pids: list[int]) -> float:
    return sum(values[pid] for pid in pids) / len(pids)


def _cpu(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system
