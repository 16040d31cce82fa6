"""The worker node put together."""

from __future__ import annotations

import os
import platform

from agents.worker import open_mpi, scratch
from agents.worker import store as rows
from agents.worker.config import WorkerOptions
from agents.worker.runner import Runner
from fabric.agent import Agent, AgentHealth, AgentState
from fabric.context import AgentContext
from fabric.errors import InvalidRequest
from fabric.settings import Endpoint, parse_options

STOP_TIMEOUT_S = 6.0


class WorkerNode(Agent):
    """One worker node with its slots. It offers no service of its own beyond health."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        settings = context.settings
        self.options = parse_options(WorkerOptions, settings.options, f"options of {settings.name}")
        store = context.store("worker", rows.metadata)
        root = scratch.choose_root(self.options.scratch_dir, context.state_dir, for_others=os.geteuid() == 0)
        self.runner = Runner(context, self.options, store, root, self._gatekeeper())
        self.runner.facts = {"host": settings.advertise, **_facts(self.options)}

    def _gatekeeper(self) -> Endpoint:
        settings = self.context.settings
        found = settings.endpoints("gatekeeper", site=settings.site)
        if self.options.gatekeeper:
            found = tuple(endpoint for endpoint in found if endpoint.name == self.options.gatekeeper)
        if not found:
            raise InvalidRequest(
                "ENDPOINT_UNKNOWN",
                f"{settings.name} finds no gatekeeper of site {settings.site} in its settings",
                kind="gatekeeper",
            )
        return found[0]

    async def start(self) -> None:
        """Find the starter and everything that runs, then connect."""
        await self.runner.recover()
        spawn = self.context.spawn
        spawn(self.runner.run(), "runner")
        spawn(self.runner.keep_batch(), "batch system")
        spawn(self.runner.watch(), "health watch")
        spawn(self.runner.clean(), "cleaner")
        spawn(self.runner.link.run(), "gatekeeper stream")

    async def stop(self) -> None:
        """Kill or leave what runs, by the option `stop_policy`."""
        await self.runner.stop(STOP_TIMEOUT_S)

    def health(self) -> AgentHealth:
        """Green when connected and fit."""
        machine, link = self.runner.machine, self.runner.link
        numbers = {
            "slots": float(machine.slots),
            "busy": float(machine.busy),
            "held": float(len(machine.jobs)),
            "credit": float(machine.credit),
            "finished": float(self.runner.finished),
            "failed": float(self.runner.failed),
        }
        if machine.unfit:
            return AgentHealth(AgentState.DEGRADED, machine.unfit, numbers)
        if not link.connected:
            return AgentHealth(AgentState.DEGRADED, f"no gatekeeper: {link.last_error}", numbers)
        return AgentHealth(AgentState.GREEN, f"{machine.busy} of {machine.slots} slots busy", numbers)


MAX_CPUINFO_BYTES = 16 * 1024
"""Enough of /proc/cpuinfo for its first processor."""


def _facts(options: WorkerOptions) -> dict[str, str]:
    facts = {
        "cpus": str(os.cpu_count() or 1),
        "memory_bytes": str(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
        "machine": platform.machine(),
        "software": " ".join(options.software),
        "software_area": options.software_area,
    }
    if open_mpi.is_here(options.path):  # of Slurm: its nodes have what this host has
        facts["open_mpi"] = "yes"
    try:
        release = platform.freedesktop_os_release()
        facts |= {
            "os": release.get("NAME", "Linux"),
            "os_release": release.get("VERSION_ID", ""),
            "os_version": release.get("VERSION_CODENAME", ""),
        }
    except OSError:
        facts["os"] = platform.system()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            first = file.read(MAX_CPUINFO_BYTES).partition("\n\n")[0]
    except OSError:
        return facts
    processor = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    facts |= {
        "cpu_model": processor.get("model name", ""),
        "cpu_vendor": processor.get("vendor_id", ""),
        "cpu_mhz": processor.get("cpu MHz", "").partition(".")[0],
    }
    return facts


def build(context: AgentContext) -> Agent:
    """For the shell."""
    return WorkerNode(context)
