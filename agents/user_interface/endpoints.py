"""Where the grid's services are, for a client: the environment, an endpoints file, or the state folder of `grid up`.

On a machine with only credentials the variables below are all that is needed; `grid env` prints them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.user_interface import console
from agents.user_interface.exits import UsageProblem
from fabric.errors import NotFound
from fabric.settings import PROTOCOLS, Endpoint

ENDPOINTS_FILE = "endpoints.json"
MAX_FILE_BYTES = 4 * 1024 * 1024
"""A grid of 200 sites has below 200 kB of endpoints."""

VARIABLES: Mapping[str, tuple[str, str]] = {
    "GRIDFABRIC_BROKER": ("broker", "rpc"),
    "GRIDFABRIC_BOOKKEEPING": ("bookkeeping", "rpc"),
    "GRIDFABRIC_CATALOG": ("catalog", "rpc"),
    "GRIDFABRIC_TRANSFER": ("transfer", "rpc"),
    "GRIDFABRIC_TOP_LDAP": ("top", "ldap"),
    "GRIDFABRIC_AUTHORITY": ("authority", "rpc"),
    "GRIDFABRIC_AUTHORITY_HTTP": ("authority", "http"),
    "GRIDFABRIC_VO_SERVER": ("vo", "rpc"),
    "GRIDFABRIC_VO_LDAP": ("vo", "ldap"),
}
"""Variable to (kind of service, port): its value is host:port."""

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})\Z")


@dataclass(frozen=True)
class Endpoints:
    """Services by kind, and what else a client has to know of the grid."""

    services: Mapping[str, tuple[Endpoint, ...]]
    grid: str = ""
    vos: tuple[str, ...] = ()
    certificates: str = ""
    source: str = ""
    """Where this was read, for sentences."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def all(self, kind: str) -> tuple[Endpoint, ...]:
        """Every service of a kind; may be empty."""
        return self.services.get(kind, ())

    def one(self, kind: str, port: str = "rpc") -> tuple[str, int]:
        """Host and port of the first service of a kind. Raises NotFound ENDPOINT_UNKNOWN."""
        for endpoint in self.all(kind):
            number = getattr(endpoint, port)
            if number:
                return endpoint.host, number
        names = [name for name, (k, p) in VARIABLES.items() if (k, p) == (kind, port)]
        hint = f"set {names[0]}=host:port, or " if names else ""
        raise NotFound(
            "ENDPOINT_UNKNOWN",
            f"no address of a {kind} service is known: {hint}start a grid here with `grid up`, "
            'and take its addresses with: eval "$(grid env)"',
            kind=kind,
        )


def parse_address(text: str, variable: str) -> tuple[str, int]:
    """host:port. Raises UsageProblem naming the variable."""
    match = _ADDRESS.match(text.strip())
    if match is None or not 0 < int(match["port"]) < 65536:
        raise UsageProblem(f"{variable} must be host:port, not {text[:100]!r}")
    return match["host"].strip("[]"), int(match["port"])


def state_folder(state: Path | None, environ: Mapping[str, str]) -> Path:
    """The state folder of the option, of GRIDFABRIC_STATE, or of the user's one grid. Raises NotFound, UsageProblem."""
    if state is not None or environ.get("GRIDFABRIC_STATE"):
        return (state or Path(environ["GRIDFABRIC_STATE"])).absolute()
    known = known_states()
    if not known:
        raise NotFound(
            "GRID_UNKNOWN", "no grid of yours is known on this machine; start one with `grid up lab`, or give --state"
        )
    running = [folder for folder in known if (folder / "run.json").exists()]
    if len(running or known) > 1:
        names = ", ".join(map(str, running or known))
        raise UsageProblem(f"which grid? there are {names}; choose with --state or GRIDFABRIC_STATE")
    return (running or known)[0]


def chosen(state: Path | None, environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment in which a command with the option `--state` looks for its grid.

    On the command line it chooses a whole grid: no variable of another one counts then. The parser fills the option
    from GRIDFABRIC_STATE too, and that goes behind the other variables.
    """
    named = environ.get("GRIDFABRIC_STATE")
    if state is None or (named and Path(named) == state):
        return environ
    others = {name: value for name, value in environ.items() if not name.startswith(("GRIDFABRIC_", "X509_"))}
    return {**others, "GRIDFABRIC_STATE": str(state)}


def known_states() -> list[Path]:
    """State folders in this user's default place."""
    from clusters.paths import default_state

    base = default_state("any", {}, os.getuid()).parent
    return sorted(path.parent for path in base.glob(f"*/{ENDPOINTS_FILE}"))


def read_file(path: Path) -> Endpoints:
    """An endpoints file. Raises NotFound, UsageProblem."""
    try:
        with path.open("rb") as file:
            raw = json.loads(file.read(MAX_FILE_BYTES))
        services = {
            str(kind): tuple(_endpoint(str(kind), item) for item in items) for kind, items in raw["endpoints"].items()
        }
        vos = raw.get("vos", [])
        organisation = str(raw.get("organisation", ""))
        return Endpoints(
            services, str(raw.get("grid", "")), tuple(map(str, vos)), str(raw.get("certificates", "")), str(path),
            {"organisation": organisation} if organisation else {},
        )  # fmt: skip
    except FileNotFoundError:
        raise NotFound(
            "ENDPOINTS_MISSING",
            f"there is no endpoints file {path}; start a grid (grid up lab), or name another with GRIDFABRIC_ENDPOINTS",
            path=path,
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageProblem(f"{path} is not an endpoints file; have one written with: grid env --file") from None


def _endpoint(kind: str, item: Mapping[str, Any]) -> Endpoint:
    ports = {name: int(item.get(name) or 0) for name in PROTOCOLS}
    return Endpoint(kind, str(item.get("name", "")), str(item["host"]), str(item.get("site", "")), **ports)


def find(environ: Mapping[str, str], state: Path | None = None) -> Endpoints:
    """Everything known: variables go before the endpoints file, the file before the state folder."""
    base = Endpoints({})
    named = environ.get("GRIDFABRIC_ENDPOINTS")
    if state is not None:
        if not (state / ENDPOINTS_FILE).is_file():
            raise NotFound("GRID_UNKNOWN", f"no grid was started with the state folder {state}", state=state)
        base = read_file(state / ENDPOINTS_FILE)
    elif named:
        base = read_file(Path(named))
    elif not any(environ.get(variable) for variable in VARIABLES):
        base = read_file(state_folder(None, environ) / ENDPOINTS_FILE)
    elif environ.get("GRIDFABRIC_STATE") and (Path(environ["GRIDFABRIC_STATE"]) / ENDPOINTS_FILE).is_file():
        base = read_file(Path(environ["GRIDFABRIC_STATE"]) / ENDPOINTS_FILE)
    services = dict(base.services)
    for variable, (kind, port) in VARIABLES.items():
        value = environ.get(variable) if state is None else None
        if value:
            host, number = parse_address(value, variable)
            known = services.get(kind, ())
            first = Endpoint(kind, "", host, "", **{"rpc": 0, "ldap": 0, "http": 0, port: number})
            same = [e for e in known if e.host == host and getattr(e, port) == number]
            services[kind] = (same[0], *(e for e in known if e is not same[0])) if same else (first, *known)
    vo = environ.get("GRIDFABRIC_VO") if state is None else None
    vos = (vo, *(v for v in base.vos if v != vo)) if vo else base.vos
    return Endpoints(services, base.grid, vos, base.certificates, base.source, base.extra)


def as_data(found: Endpoints) -> dict[str, Any]:
    """The content of an endpoints file."""
    return {
        "grid": found.grid,
        "vos": list(found.vos),
        "certificates": found.certificates,
        **found.extra,
        "endpoints": {
            kind: [
                {k: v for k, v in vars(endpoint).items() if k != "kind" and v not in ("", 0)} for endpoint in services
            ]
            for kind, services in found.services.items()
        },
    }


def variables(found: Endpoints, state: Path | None) -> dict[str, str]:
    """The shell variables for a client of this grid."""
    shown: dict[str, str] = {}
    if found.certificates:
        shown["X509_CERT_DIR"] = found.certificates
    if state is not None:
        shown["GRIDFABRIC_STATE"] = str(state)
    for variable, (kind, port) in VARIABLES.items():
        for endpoint in found.all(kind):
            if getattr(endpoint, port):
                host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
                shown[variable] = f"{host}:{getattr(endpoint, port)}"
                break
    if found.vos:
        shown["GRIDFABRIC_VO"] = found.vos[0]
    if state is not None:
        shown |= voms_variables(state)
    return shown | myproxy_variables(found)


def myproxy_variables(found: Endpoints) -> dict[str, str]:
    """The variables by which MyProxy clients find the grid's credential store and know it; none if there is none."""
    for store in found.all("myproxy"):
        if store.myproxy:
            shown = {"MYPROXY_SERVER": store.host, "MYPROXY_SERVER_PORT": str(store.myproxy)}
            if "organisation" in found.extra and store.site:
                shown["MYPROXY_SERVER_DN"] = f"{found.extra['organisation']}/OU={store.site}/CN=myproxy/{store.name}"
            return shown
    return {}


def voms_variables(folder: Path) -> dict[str, str]:
    """The variables by which VOMS clients find a folder's `vomses` and `vomsdir`; none if it has none."""
    if not (folder / "vomses").is_file() or not (folder / "vomsdir").is_dir():
        return {}
    vomses = str(folder / "vomses")
    return {"X509_VOMS_DIR": str(folder / "vomsdir"), "VOMS_USERCONF": vomses, "X509_VOMSES": vomses}


def copy_voms_files(state: Path, target: Path) -> None:
    """`vomses` and `vomsdir` of a grid into a folder for another machine. Raises NotFound, OSError."""
    if not voms_variables(state):
        raise NotFound(
            "VOMS_FILES_MISSING", f"{state} has no vomses file; start the grid again with: grid up", state=state
        )
    for path in [state / "vomses", *sorted((state / "vomsdir").glob("*/*.lsc"))]:
        copy = target / path.relative_to(state)
        copy.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o644)


def env_command(
    environ: Mapping[str, str], state: Path | None, file: Path | None, voms: Path | None = None, *, as_json: bool
) -> None:
    """`grid env`."""
    folder = state_folder(state, environ)
    found = find(environ, folder)
    shown = variables(found, folder)
    if file is not None:
        text = json.dumps(as_data(found), indent=2) + "\n"
        file.write_text(text, encoding="utf-8")
        os.chmod(file, 0o644)
    if voms is not None:
        copy_voms_files(folder, voms)
    if as_json:
        console.print_json(shown)
        return
    for name, value in shown.items():
        print(f"export {name}={shlex.quote(value)}")
