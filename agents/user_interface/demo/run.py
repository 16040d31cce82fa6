"""`grid demo`: from nothing to the plot, through the same clients that every user has.

1 the grid is started; 2 a user gets a certificate and a proxy and submits the production; 3 the event files are
replicated and analysed at CERN; 4 tables, plot, report, histories; 5 the grid is stopped and its state removed.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from agents.user_interface import console, deployment, endpoints
from agents.user_interface.demo import descriptions, report, software
from agents.user_interface.demo.report import JobRecord, Phase, Report
from agents.user_interface.exits import Ended, ExitCode
from agents.user_interface.progress import Bar
from agents.user_interface.signals import terminate_as_interrupt, undisturbed
from fabric.text import counted

USER = "Demo Physicist"
PROXY_LIFETIME = timedelta(hours=12)
PUBLISHED_WITHIN_S = 20.0
"""For every CE to be seen at the top after the agents are green."""
PRODUCTION_TIMEOUT_S = 1800.0
ANALYSIS_TIMEOUT_S = 600.0
MAX_KEPT_LOG_BYTES = 4 * 1024 * 1024
"""Of each agent's log, when a demo failed."""


def demo_command(*, jobs: int, events: int, keep: bool, out: Path, grid: str, as_json: bool) -> None:
    """Run the demo; exit 0 only if every check holds. However it ends, the grid is stopped, unless --keep."""
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    state = make_state_folder()
    demo = Demo(jobs=jobs, events=events, out=out, state=state, grid=grid)
    kept = False
    code: int = ExitCode.FAILED
    try:
        with terminate_as_interrupt():
            try:
                demo.run()
                code = ExitCode.OK if demo.report.ok else ExitCode.FAILED
                kept = keep
            finally:
                if not kept:
                    with undisturbed():
                        demo.clean_up()
    except KeyboardInterrupt:
        console.warn("interrupted; the grid is stopped and its state removed")
        raise Ended(ExitCode.INTERRUPTED) from None
    demo.finish(as_json=as_json)
    if kept:
        _say_what_next(state)
    raise Ended(ExitCode(code))


def make_state_folder() -> Path:
    """A new folder that pool accounts can reach: in TMPDIR if that is open to others, else in /var/tmp."""
    for base in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/tmp")):
        reachable = all(
            folder.stat().st_mode & stat.S_IXOTH for folder in (base, *base.resolve().parents) if folder.exists()
        )
        if base.is_dir() and os.access(base, os.W_OK) and reachable:
            folder = Path(tempfile.mkdtemp(prefix="gridfabric-demo-", dir=base))
            folder.chmod(0o755)
            return folder
    return Path(tempfile.mkdtemp(prefix="gridfabric-demo-"))


async def make_user(grid: Any, work: Path) -> Any:
    """A certificate, membership in the VO, and a proxy: as `grid user add` and `grid proxy init`."""
    from agents.user_interface import proxy, users
    from security.proxies import create_proxy

    user = await users.add(grid, USER, grid.vo, [], work / "globus")
    path = proxy.place(work / "proxy.pem", {})
    credential = proxy.open_certificate({}, user.certificate, user.key)
    made = create_proxy(credential, lifetime=PROXY_LIFETIME, now=proxy.now_utc())
    made.save(path)
    console.say(
        f"user {user.subject}, member of {user.vo}, proxy {path.name} until {console.time_text(made.not_after)}"
    )
    return made


class Demo:
    """One run. `report` grows as it goes."""

    def __init__(self, *, jobs: int, events: int, out: Path, state: Path, grid: str) -> None:
        self.out, self.state, self.grid = out, state, grid
        self.work = state / "user"
        self.began = time.monotonic()
        self.began_us = time.time_ns() // 1000
        self.plot = b""
        self.complete = False
        """Everything that needs the grid is done."""
        self.report = Report(
            grid=Path(grid).stem,
            version=_version(),
            machine=_machine(),
            began_at=console.time_text(datetime.now(UTC)),
            jobs_wanted=jobs,
            events_per_job=events,
        )
        self.running: Any = None
        self.software: software.SoftwareArea | None = None

    def seconds(self) -> float:
        """Since the beginning."""
        return round(time.monotonic() - self.began, 3)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A part of the demo, for the timeline."""
        phase = Phase(name, self.seconds())
        self.report.phases.append(phase)
        yield
        phase.ended_s = self.seconds()

    def run(self) -> None:
        """All of it, up to the written report."""
        console.say(
            f"gridfabric demo: {counted(self.report.jobs_wanted, 'job')} of "
            f"{counted(self.report.events_per_job, 'event')} on {self.report.grid}"
        )
        self.work.mkdir(mode=0o700)
        with self.phase("software"):
            self.software = software.prepare(self.state / "software" / "cms", pool_accounts_wanted=os.geteuid() == 0)
            if self.software.note:
                self.report.notes.append(self.software.note)
                console.say(f"note: {self.software.note}")
            self._copy_payloads()
            initialisation = self._start_initialisation()
        try:
            with self.phase("grid up"):
                description = deployment.demo_description(
                    self.grid,
                    {"VO_CMS_SW_DIR": str(self.software.path)},
                    [descriptions.SOFTWARE_TAG],
                    pool_accounts=self.software.pool_accounts,
                )
                self.report.grid = description.name
                self.running = deployment.start(description, self.state)
            self._await_initialisation(initialisation)
        finally:
            if initialisation.poll() is None:
                initialisation.kill()
                initialisation.wait()
        asyncio.run(self._work())
        self.complete = True

    def _copy_payloads(self) -> None:
        folder = resources.files("agents.user_interface") / "payloads"
        for name in ("run.sh", "generate.py", "analyse.py"):
            (self.work / name).write_bytes((folder / name).read_bytes())

    def _start_initialisation(self) -> subprocess.Popen[bytes]:
        """Make the table of multiparton interactions once for all jobs, while the grid starts."""
        assert self.software is not None
        command = ["/bin/sh", "run.sh", "generate.py", "--seed", "1", "--events", "0", "--initialisation", "mpi.dat"]
        environment = {"VO_CMS_SW_DIR": str(self.software.path), "PATH": os.environ.get("PATH", "/usr/bin:/bin")}
        return subprocess.Popen(
            command,
            cwd=self.work,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is ours to deal with
        )

    def _await_initialisation(self, process: subprocess.Popen[bytes]) -> None:
        try:
            _, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            errors = b"not ready after 60 s"
        if process.returncode != 0:
            text = errors.decode("utf-8", "replace").strip().splitlines()
            raise software.SoftwareError(f"the event generator does not run here: {text[-1] if text else 'no message'}")

    async def _work(self) -> None:
        from agents.user_interface.connection import administrator, open_grid
        from agents.user_interface.users import await_known

        services = endpoints.find({}, self.state)
        certificates = Path(services.certificates)
        with self.phase("user"):
            async with open_grid(services, administrator(self.state), certificates) as grid:
                proxy = await make_user(grid, self.work)
        async with open_grid(services, proxy, certificates) as grid:
            with self.phase("publishing"):
                ces, unknown = await asyncio.gather(self._await_sites(services), await_known(grid))
                if unknown:
                    self.report.notes.append(f"the user is not yet known to {', '.join(unknown)}")
            with self.phase("production"):
                await self._produce(grid, ces)
            with self.phase("replication"):
                files = await self._replicate(grid)
            with self.phase("analysis"):
                ready = asyncio.create_task(asyncio.to_thread(report.preload_plot, self.state / "matplotlib"))
                await self._analyse(grid, files, ces)
                await ready
            with self.phase("report"):
                await self._collect(grid, files)

    async def _await_sites(self, services: endpoints.Endpoints) -> dict[str, str]:
        """CE name -> site, once every gatekeeper is published at the top; after a while with what is there."""
        from agents.user_interface import information
        from fabric.errors import GridError

        expected = len(services.all("gatekeeper"))
        deadline = time.monotonic() + PUBLISHED_WITHIN_S
        while True:
            try:
                found = await information.computing_elements(services.one("top", "ldap"))
            except GridError:
                found = []
            ready = [ce for ce in found if ce.status == "Production" and ce.total > 0]
            if len(ready) >= expected or time.monotonic() > deadline:
                if len(ready) < expected:
                    self.report.notes.append(
                        f"only {len(ready)} of {expected} computing elements were published in time"
                    )
                return {ce.name: ce.site for ce in found}
            await asyncio.sleep(0.2)

    async def _produce(self, grid: Any, ces: Mapping[str, str]) -> None:
        from agents.user_interface import jobs

        folder = f"lfn:/grid/{grid.vo}/mc/pp13tev"
        jdl = descriptions.production(
            vo=grid.vo, jobs=self.report.jobs_wanted, events=self.report.events_per_job, folder=folder
        )
        (self.out / "production.jdl").write_text(jdl, encoding="utf-8")
        submitted = await jobs.submit(grid, jdl, self.work)
        self.report.jobs = [
            JobRecord(job_id, f"production-{number}", lfn=f"{folder}/events-{number}.gfev")
            for number, job_id in enumerate(submitted.jobs, 1)
        ]
        console.say(f"submitted {counted(len(submitted.jobs), 'job')}: {submitted.job_id}")
        with Bar("production", len(submitted.jobs)) as bar:
            await self._follow(grid, [submitted.job_id], self.report.jobs, ces, bar, PRODUCTION_TIMEOUT_S)

    async def _follow(
        self,
        grid: Any,
        job_ids: Sequence[str],
        records: Sequence[JobRecord],
        ces: Mapping[str, str],
        bar: Bar,
        timeout_s: float,
    ) -> None:
        """Wait for jobs with a progress bar; what is known of them at the end goes into `records`."""
        from agents.bookkeeping.client import ENDED_STATES, state_name
        from agents.user_interface import jobs

        def show(states: Mapping[str, Any]) -> None:
            counts: dict[str, int] = {}
            for job in states.values():
                counts[state_name(job.state)] = counts.get(state_name(job.state), 0) + 1
            ended = sum(job.state in ENDED_STATES for job in states.values())
            running = "  ".join(f"{name.lower()} {count}" for name, count in sorted(counts.items()))
            bar.update(ended, running)

        try:
            states = await jobs.follow(grid, job_ids, show, timeout_s=timeout_s)
        except TimeoutError:
            self.report.notes.append(f"{bar.title}: not every job had ended after {timeout_s:.0f} s")
            states = {job.job_id: job for job in await jobs.summaries(grid, job_ids)}
        for record in records:
            job = states.get(record.job_id)
            if job is None:
                continue
            record.state, record.exit_code, record.reason = state_name(job.state), job.exit_code, job.reason
            record.ce, record.site, record.worker = job.ce, ces.get(job.ce, job.ce), job.worker
            record.attempt, record.wall_s, record.cpu_s = max(1, job.attempt), job.wall_s, job.cpu_s
            if not record.good:
                reason = record.reason or f"exit code {record.exit_code}"
                self.report.notes.append(f"{record.name} is {record.state} at {record.ce or 'no CE'}: {reason}")

    async def _replicate(self, grid: Any) -> dict[str, Any]:
        """Every file to CERN; those that are only there, to another site. Returns LFN -> entry of the catalogue."""
        from agents.user_interface import data

        good = [job for job in self.report.jobs if job.good]
        if not good:
            return {}
        files = await data.lookup(grid, [job.lfn for job in good])
        self.report.bytes_produced = sum(file.content.size_bytes for file in files)
        cern = await data.find_element(grid, descriptions.ANALYSIS_SITE)
        others = [element for element in await data.elements(grid) if element != cern] or [cern]
        targets: dict[Any, list[Any]] = {}
        for number, file in enumerate(files):
            at_cern = any(data.is_at(replica, cern) for replica in file.replicas)
            targets.setdefault(others[number % len(others)] if at_cern else cern, []).append(file)
        done = 0

        def copied(file: Any, replica: Any) -> None:
            nonlocal done
            done += 1
            self.report.bytes_replicated += file.content.size_bytes if replica is not None else 0
            bar.update(done)

        with Bar("replication", len(files)) as bar:
            outcomes = await asyncio.gather(
                *(data.replicate_all(grid, chosen, target, copied) for target, chosen in targets.items())
            )
        for error in (error for failures in outcomes for error in failures):
            self.report.notes.append(f"replication: {error}")
        return {data.lfn_of(file): file for file in await data.lookup(grid, [job.lfn for job in good])}

    async def _analyse(self, grid: Any, files: Mapping[str, Any], ces: Mapping[str, str]) -> None:
        from agents.user_interface import jobs

        if not files:
            return
        jdl = descriptions.analysis(vo=grid.vo, lfns=sorted(files))
        (self.out / "analysis.jdl").write_text(jdl, encoding="utf-8")
        submitted = await jobs.submit(grid, jdl, self.work)
        record = self.report.analysis = JobRecord(submitted.job_id, "analysis")
        with Bar("analysis", 1) as bar:
            await self._follow(grid, [submitted.job_id], [record], ces, bar, ANALYSIS_TIMEOUT_S)
        if record.state in ("DONE", "CLEARED"):
            await jobs.fetch_output(grid, submitted.job_id, self.out / "analysis", clear=True)
        if record.good:
            text = (self.out / "analysis" / "histogram.json").read_text(encoding="utf-8")
            self.report.histogram = json.loads(text)
            self.report.bytes_read = sum(file.content.size_bytes for file in files.values())
            counted = self.report.histogram.get("files", {})
            for job in self.report.jobs:
                job.events = counted.get(job.lfn.rpartition("/")[2], {}).get("events", 0)

    async def _collect(self, grid: Any, files: Mapping[str, Any]) -> None:
        """Histories, and the replicas' checksums as each storage element has them now."""
        from agents.storage import client as storage
        from agents.user_interface import data, jobs

        client = await jobs.bookkeeping(grid)
        histories = self.out / "histories"
        shutil.rmtree(histories, ignore_errors=True)
        histories.mkdir()
        records = [*self.report.jobs, *([self.report.analysis] if self.report.analysis else [])]
        gate = asyncio.Semaphore(16)

        async def history(record: JobRecord) -> None:
            async with gate:
                content = jobs.history_data(await client.history(record.job_id))
            text = json.dumps(content, indent=2) + "\n"
            (histories / f"{record.name}-{record.job_id.rpartition('/')[2]}.json").write_text(text, encoding="utf-8")
            for event in content["events"]:
                at_s = self._since_beginning(event["at"])
                if event["event"] == "REGISTERED":
                    record.submitted_s = at_s
                elif event["event"] == "RUNNING":
                    record.started_s = at_s
                elif event["event"] in ("DONE", "ABORTED", "CANCELLED"):
                    record.ended_s = at_s

        locations: dict[str, list[dict[str, str]]] = {}

        async def replica(file: Any, known: Any) -> None:
            async with gate:
                found = await storage.stat(await grid.channel_to(*data.door(known.surl)), known.surl)
            locations.setdefault(data.lfn_of(file), []).append(
                {
                    "surl": known.surl,
                    "storage_element": ":".join(map(str, data.door(known.surl))),
                    "adler32": found.checksums.adler32,
                    "sha256": found.checksums.sha256,
                }
            )

        async with asyncio.TaskGroup() as group:
            for record in records:
                group.create_task(history(record))
            for file in files.values():
                for known in file.replicas:
                    group.create_task(replica(file, known))
        for job in self.report.jobs:
            job.replicas = locations.get(job.lfn, [])
            job.bytes = files[job.lfn].content.size_bytes if job.lfn in files else 0
        self.report.checks = report.checks_of(self.report, locations)

    def draw(self) -> None:
        """The plot, if there is something to plot and it is not there yet. Needs no grid."""
        if self.report.histogram and not self.plot:
            title = f"Pythia 8, pp at 13 TeV, produced on {self.report.grid} by {len(self.report.jobs)} grid jobs"
            self.plot = report.draw_plot(self.report.histogram, title=title, cache=self.state / "matplotlib")

    def _since_beginning(self, text: str) -> float:
        moment = datetime.fromisoformat(text)
        return round((moment.timestamp() * 1e6 - self.began_us) / 1e6, 3)

    def write(self) -> None:
        """demo-out/: plot, report.json, report.html."""
        self.report.seconds = self.seconds()
        if self.plot:
            (self.out / "charged-multiplicity.png").write_bytes(self.plot)
        text = json.dumps(self.report.as_data(), indent=2) + "\n"
        (self.out / "report.json").write_text(text, encoding="utf-8")
        (self.out / "report.html").write_text(report.render_html(self.report, self.plot), encoding="utf-8")

    def clean_up(self) -> None:
        """Stop the grid, keep the logs of a failed run, remove the state. Never raises for what is already gone."""
        console.say("stopping the grid")
        with self.phase("grid down"), ThreadPoolExecutor(1) as meanwhile:
            drawn = meanwhile.submit(self.draw) if self.complete else None
            try:
                deployment.stop(self.state)
            except Exception as error:
                console.warn(f"while stopping the grid: {error}")
            if drawn is not None:
                drawn.result()
        if self.running is not None and not self.report.ok:
            self._keep_logs()
        deployment.remove(self.state)
        if self.state.exists():
            console.warn(f"{self.state} could not be removed completely")

    def _keep_logs(self) -> None:
        for log in self.state.rglob("*.jsonl"):
            try:
                target = self.out / "logs" / log.parent.name
                target.mkdir(parents=True, exist_ok=True)
                data = log.read_bytes()[-MAX_KEPT_LOG_BYTES:]
                (target / log.name).write_bytes(data)
            except OSError:
                continue

    def finish(self, *, as_json: bool) -> None:
        """Files and tables."""
        self.draw()
        self.write()
        if as_json:
            console.print_json(self.report.as_data())
            return
        report.print_report(self.report)
        print(
            f"{'all is well' if self.report.ok else 'NOT all is well'}: {self.report.seconds:.1f} s; "
            f"see {self.out}/report.html"
        )


def _say_what_next(state: Path) -> None:
    if console.mode.as_json:
        return
    user = state / "user"
    print(f"""
The grid is still up. Try:
  export GRIDFABRIC_STATE={state}
  eval "$(grid env)"
  export X509_USER_PROXY={user}/proxy.pem
  grid status
  grid info sites
  grid job status
  grid data ls -l lfn:/grid/cms/mc/pp13tev
  ldapsearch -x -H ldap://$GRIDFABRIC_TOP_LDAP -b o=grid '(objectClass=GlueCE)'
  grid down --purge""")


def _version() -> str:
    try:
        return metadata.version("gridfabric")
    except metadata.PackageNotFoundError:
        return "unknown"


def _machine() -> dict[str, Any]:
    facts: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("ray", "grpcio", "pythia8mc"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    facts["accounts"] = "pool accounts" if os.geteuid() == 0 else "the caller's own"
    return facts
