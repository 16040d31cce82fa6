"""The VOMS server as Debian ships it, over a MariaDB of its own in a private folder, with a private socket."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from support.grid import free_port

from security.credentials import Credential
from security.testing import TestGrid

PLUGIN = next(Path("/usr/lib").glob("**/libvomsmysql.so"), None)
MISSING = ", ".join(
    [tool for tool in ("voms", "mariadbd", "voms-proxy-init") if shutil.which(tool, path="/usr/sbin:/usr/bin") is None]
    + ([] if PLUGIN else ["voms-mysql-plugin"])
)
"""What is not installed, for the reason of a skipped test."""

START_S, STOP_S = 20.0, 10.0
PASSWORD = "of-a-data-base-that-asks-for-none"

# The tables of VOMS Admin's schema, version 3, that the server itself reads.
TABLES = {
    "version": "version int, admin_version varchar(64)",
    "seqnumber": "seq varchar(64)",
    "ca": "cid smallint, subject_string varchar(250), ca varchar(250)",
    "usr": "userid bigint, dn varchar(250), ca smallint",
    "certificate": "id bigint, usr_id bigint, subject_string varchar(250), ca_id smallint, suspended bool,"
    " suspended_reason varchar(250)",
    "`groups`": "gid bigint, dn varchar(250), parent bigint, must bool",
    "roles": "rid bigint, role varchar(250)",
    "capabilities": "cid bigint, capability varchar(250)",
    "m": "mapping_id bigint, userid bigint, gid bigint, rid bigint, cid bigint",
    "attributes": "a_id bigint, a_name varchar(250)",
    "usr_attrs": "a_id bigint, u_id bigint, a_value varchar(250)",
    "group_attrs": "a_id bigint, g_id bigint, a_value varchar(250)",
    "role_attrs": "a_id bigint, g_id bigint, r_id bigint, a_value varchar(250)",
}


def _statements(authority: str, members: Mapping[str, Iterable[str]]) -> list[str]:
    """The data base of a VO: `members` has the FQANs of each DN; who has none is suspended."""
    groups: dict[str, int] = {}
    roles: dict[str, int] = {}
    rows: list[tuple[str, tuple[object, ...]]] = [
        ("version", (3, "test")), ("seqnumber", ("00",)), ("ca", (1, authority, authority)),
    ]  # fmt: skip
    for user, (dn, fqans) in enumerate(members.items(), 1):
        suspended = not fqans
        rows.append(("usr", (user, dn, 1)))
        rows.append(("certificate", (user, user, dn, 1, int(suspended), "on holiday" if suspended else "")))
        for fqan in fqans:
            group, _, role = fqan.partition("/Role=")
            gid = groups.setdefault(group, len(groups) + 1)
            rid = roles.setdefault(role, len(roles) + 1) if role else None
            rows.append(("m", (len(rows), user, gid, rid, None)))
    rows += [("`groups`", (gid, name, 1, int(gid == 1))) for name, gid in groups.items()]
    rows += [("roles", (rid, name)) for name, rid in roles.items()]
    create = [f"create table {name} ({columns});" for name, columns in TABLES.items()]
    insert = [f"insert into {table} values ({', '.join(map(_literal, row))});" for table, row in rows]
    return ["create database voms;", "use voms;", *create, *insert]


def _literal(value: object) -> str:
    if value is None:
        return "null"
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"


def _answers(family: socket.AddressFamily, address: str | tuple[str, int]) -> bool:
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


class Vomsd:
    """The `voms` daemon of one VO and its data base: a context manager, entered when the port answers."""

    def __init__(self, grid: TestGrid, host: Credential, vo: str, members: Mapping[str, Iterable[str]]) -> None:
        self.port = free_port()
        self.subject, self.vo = host.subject, vo
        self._folder = Path(tempfile.mkdtemp(prefix="vomsd-"))  # the path of a Unix socket is short
        self._database: subprocess.Popen[bytes] | None = None
        (self._folder / "db").mkdir()
        statements = _statements(str(grid.ca.subject), members)
        (self._folder / "vo.sql").write_text("".join(f"{line}\n" for line in statements))
        (self._folder / "pass").write_text(f"{PASSWORD}\n")
        (self._folder / "pass").chmod(0o640)  # the mode that it insists on
        certificate, key = grid.save_user(host, self._folder / "host")
        self._configuration = self._folder / "voms.conf"
        self._configuration.write_text(
            f"--vo={vo}\n--dbname=voms\n--port={self.port}\n--username=voms\n--passfile={self._folder}/pass\n"
            f"--sqlloc={PLUGIN}\n--mysql-socket={self._folder}/socket\n--logfile={self._folder}/log\n--loglevel=4\n"
            f"--logtype=7\n--uri=localhost:{self.port}\n--x509_user_cert={certificate}\n--x509_user_key={key}\n"
            f"--x509_cert_dir={grid.trust_directory}\n--socktimeout=10\n"
        )
        self._environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self._folder), "X509_USER_CERT": str(certificate),
            "X509_USER_KEY": str(key), "X509_CERT_DIR": str(grid.trust_directory),
        }  # fmt: skip

    def __enter__(self) -> Vomsd:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        folder = self._folder
        self._database = subprocess.Popen(
            ["mariadbd", "--no-defaults", f"--datadir={folder}/db", f"--socket={folder}/socket", "--skip-networking",
             "--skip-grant-tables", "--skip-innodb", "--default-storage-engine=MyISAM",
             f"--init-file={folder}/vo.sql", f"--pid-file={folder}/pid", f"--log-error={folder}/database.log",
             *(["--user=root"] if os.geteuid() == 0 else [])],
            env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._wait(folder / "database.log", lambda: _answers(socket.AF_UNIX, f"{folder}/socket"))
        subprocess.run(
            ["/usr/sbin/voms", "--conf", str(self._configuration)],
            env=self._environment, cwd="/", timeout=START_S, check=True, capture_output=True,
        )  # fmt: skip
        self._wait(folder / "log", lambda: _answers(socket.AF_INET, ("127.0.0.1", self.port)))

    def __exit__(self, *_: object) -> None:
        for pid in self._daemons():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if self._database is not None:
            self._database.terminate()
            self._database.wait(STOP_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _daemons(self) -> list[int]:
        """It forks away and writes no pid file: ours is the one with our configuration."""
        found: list[int] = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if str(self._configuration).encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def _wait(self, log: Path, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + START_S
        while not ready():
            if time.monotonic() > end:
                raise AssertionError(log.read_text(errors="replace")[-2000:] if log.exists() else f"no {log}")
            time.sleep(0.02)
