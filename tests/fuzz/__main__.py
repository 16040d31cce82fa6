"""`make fuzz`: every target for some seconds, with atheris where it is installed, else with our own mutations.

A finding is written to `fuzz-out/<target>-<digest>` and printed with the command that repeats it. Besides errors that
are no refusals, an input that takes over a second or 256 MiB more memory is a finding.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import sys
import time
import traceback
from pathlib import Path

from fuzz.mutate import mutate
from fuzz.targets import Target, World

SLOW_S = 1.0
LARGE_KIB = 256 * 1024
OUT = Path("fuzz-out")


class Runner:
    """Runs inputs of one target and keeps what is found."""

    def __init__(self, name: str, target: Target) -> None:
        self.name, self.target = name, target
        self.count = self.findings = 0
        self.slowest_s = 0.0
        self.guided = False
        """A finding ends the run: atheris has to see it."""

    def __call__(self, data: bytes) -> None:
        self.count += 1
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            self.target.run(data)
        except Exception:
            self._found(data, traceback.format_exc())
            return
        took_s = time.process_time() - start
        self.slowest_s = max(self.slowest_s, took_s)
        if took_s > SLOW_S:
            self._found(data, f"took {took_s:.1f} s of processor time")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if grown > LARGE_KIB:
            self._found(data, f"took {grown // 1024} MiB of memory")

    def _found(self, data: bytes, what: str) -> None:
        self.findings += 1
        OUT.mkdir(exist_ok=True)
        path = OUT / f"{self.name}-{hashlib.sha256(data).hexdigest()[:16]}"
        path.write_bytes(data)
        if self.findings <= 3:
            print(f"{what}\n  again: python -m fuzz --target {self.name} --file {path}", file=sys.stderr)
        if self.guided:
            raise RuntimeError(f"a finding, kept in {path}")


def by_mutation(runner: Runner, seconds: float, seed: int) -> None:
    """Our own changes of the seeds; what was read without refusal is not told apart."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    pool = list(runner.target.seeds)
    while time.monotonic() < end:
        for _ in range(20):
            runner(mutate(chance.choice(pool), chance, pool))


def by_atheris(runner: Runner, seconds: float, seed: int) -> bool:
    """Guided by coverage, in this process; False if atheris is not installed."""
    try:
        import atheris
    except ImportError:
        return False
    corpus = OUT / f"corpus-{runner.name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for data in runner.target.seeds:
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    atheris.instrument_all()
    runner.guided = True
    options = [f"-max_total_time={int(seconds)}", f"-seed={seed}", "-max_len=65536", "-timeout=5", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], runner)
    atheris.Fuzz()  # ends the process
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each target")
    parser.add_argument("--target", default="", help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", type=Path, help="only this input")
    parser.add_argument("--atheris", action="store_true", help="coverage-guided; needs --target")
    chosen = parser.parse_args()
    world = World()
    targets = world.targets()
    findings = 0
    for name in [chosen.target] if chosen.target else targets:
        if name not in targets:
            parser.error(f"no target {name}; there are {', '.join(targets)}")
        runner = Runner(name, targets[name])
        if chosen.file is not None:
            runner(chosen.file.read_bytes())
        elif not (chosen.atheris and by_atheris(runner, chosen.seconds, chosen.seed)):
            by_mutation(runner, chosen.seconds, chosen.seed)
        findings += runner.findings
        slowest = f"slowest {runner.slowest_s * 1e3:7.1f} ms"
        print(f"{name:<16} {runner.count:>9,} inputs  {slowest}  {runner.findings} findings", flush=True)
    world.close()
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
