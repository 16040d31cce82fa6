"""The VO's software area: the generator and an interpreter where a pool account can read and execute them.

Layout, the same at every site ($VO_CMS_SW_DIR): bin/python3, lib/python/site-packages/pythia8mc*, share/Pythia8/.
Jobs of a pool account can read neither /root nor a 0700 folder, so what is installed there is linked or copied.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SHARE_FOLDERS = ("xmldoc", "pdfdata", "settings", "tunes", "setups")
"""What Pythia reads at run time; its manuals are left out."""


class SoftwareError(Exception):
    """The software area cannot be made. `sentence` says why and what to do."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.reason, self.sentence, self.facts = "SOFTWARE_MISSING", sentence, dict[str, str]()


@dataclass(frozen=True)
class SoftwareArea:
    """Where it is and what it offers. `note` is a sentence for the user if pool accounts cannot be used."""

    path: Path
    interpreter: Path
    pool_accounts: bool
    note: str = ""


def readable_by_others(path: Path) -> bool:
    """True if an account without any special right can reach and read (execute, for folders) this path."""
    path = path.resolve()
    try:
        if not path.stat().st_mode & stat.S_IROTH:
            return False
        return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    except OSError:
        return False


def choose_interpreter() -> tuple[Path, bool]:
    """An interpreter of this minor version, and whether pool accounts can execute it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    own = Path(sys.base_prefix) / "bin" / f"python{version}"
    candidates = [own, Path(getattr(sys, "_base_executable", sys.executable)), Path(f"/usr/bin/python{version}")]
    candidates.append(Path(f"/usr/local/bin/python{version}"))
    for candidate in candidates:
        if candidate.exists() and readable_by_others(candidate) and _runs(candidate, version):
            return candidate.resolve(), True
    for candidate in candidates:
        if candidate.exists():
            return candidate, False
    return Path(sys.executable), False


def _runs(interpreter: Path, version: str) -> bool:
    code = "import sys, gzip, json; print('%d.%d' % sys.version_info[:2])"
    try:
        answer = subprocess.run(
            [interpreter, "-I", "-c", code], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.stdout.strip() == version


def prepare(path: Path, *, pool_accounts_wanted: bool) -> SoftwareArea:
    """Make the software area at `path`. May be called again. Raises SoftwareError."""
    module, share = _locate()
    interpreter, executable_by_pool = choose_interpreter()
    packages = path / "lib" / "python" / "site-packages"
    packages.mkdir(parents=True, exist_ok=True)
    (path / "bin").mkdir(exist_ok=True)
    _place(module, packages / module.name)
    for name in SHARE_FOLDERS:
        if (share / name).is_dir():
            _place_tree(share / name, path / "share" / "Pythia8" / name)
    link = path / "bin" / "python3"
    link.unlink(missing_ok=True)
    link.symlink_to(interpreter)
    for folder in (path, *(folder for folder in path.rglob("*") if folder.is_dir() and not folder.is_symlink())):
        folder.chmod(0o755)
    note = ""
    if pool_accounts_wanted and not executable_by_pool:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        note = (
            f"no Python {version} that a pool account may execute was found (this one is {interpreter}); "
            f"jobs run as the caller. Cure: install python{version} in /usr"
        )
    return SoftwareArea(path, interpreter, pool_accounts_wanted and executable_by_pool, note)


def _locate() -> tuple[Path, Path]:
    """The extension module and Pythia's share folder."""
    found = importlib.util.find_spec("pythia8mc")
    if found is None or found.origin is None:
        raise SoftwareError("the package pythia8mc is not installed; the demo needs it: pip install pythia8mc")
    module = Path(found.origin)
    for base in module.parents:
        share = base / "share" / "Pythia8"
        if (share / "xmldoc" / "Index.xml").is_file():
            return module, share
    raise SoftwareError(f"the data of pythia8mc was not found near {module}; install the package again")


def _place(source: Path, target: Path) -> None:
    """A hard link where that is allowed and the mode is right, else a copy."""
    if target.exists():
        return
    if source.stat().st_mode & stat.S_IROTH:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system, or a link that this user may not make: copy
    shutil.copyfile(source, target)
    target.chmod(0o755 if source.stat().st_mode & stat.S_IXUSR else 0o644)


def _place_tree(source: Path, target: Path) -> None:
    for folder, _, names in os.walk(source):
        here = target / Path(folder).relative_to(source)
        here.mkdir(parents=True, exist_ok=True)
        for name in names:
            _place(Path(folder) / name, here / name)
