"""The offline judges: verdicts step by step, `--json` too, exit 0 accepted, 1 refused, 2 unusable input."""

from __future__ import annotations

import json
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from agents.user_interface.main import run
from security import certificates, voms
from security.credentials import Credential
from security.names import DistinguishedName
from security.proxies import create_proxy
from security.testing import NOW, TestGrid, chain_of
from security.trust import subject_hash

AT = "2026-06-01T12:00:00Z"


@pytest.fixture
def grid(tmp_path: Path) -> Any:
    made = TestGrid(tmp_path / "grid")
    yield made
    made.close()


class Judge:
    """Runs a command on the grid's trust directory at its time."""

    def __init__(self, grid: TestGrid, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.grid, self.folder, self._capsys = grid, folder, capsys

    def __call__(self, *words: str) -> tuple[int, dict[str, Any]]:
        code = run([*words, "--json"])
        return code, json.loads(self._capsys.readouterr().out)

    def text(self, *words: str) -> tuple[int, str]:
        code = run(list(words))
        captured = self._capsys.readouterr()
        return code, captured.out + captured.err

    def verify(self, material: Credential | bytes, *words: str) -> tuple[int, dict[str, Any]]:
        path = self.folder / "chain.pem"
        path.write_bytes(material if isinstance(material, bytes) else material.pem_chain())
        return self("proxy", "verify", str(path), *self.where(), *words)

    def where(self) -> list[str]:
        return ["--trust-dir", str(self.grid.trust_directory), "--at", AT]

    def file(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)


@pytest.fixture
def judge(grid: TestGrid, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Judge:
    return Judge(grid, tmp_path, capsys)


def outcomes(answer: dict[str, Any]) -> dict[str, str]:
    return {step["step"]: step["outcome"] for step in answer["steps"]}


# grid proxy verify


def test_a_good_proxy_passes_every_step(judge: Judge) -> None:
    code, answer = judge.verify(judge.grid.proxy(judge.grid.limited("alice"), limited=True))
    assert code == 0 and answer["accepted"]
    assert (answer["subject"], answer["is_limited"], answer["proxy_depth"]) == ("/C=XX/O=TestGrid/CN=alice", True, 2)
    assert set(outcomes(answer).values()) == {"passed"}
    assert list(outcomes(answer)) == ["parse", "path", "proxy rules", "revocation lists", "namespaces", "purpose"]


@pytest.mark.parametrize(
    ("fault", "step", "reason"),
    [
        ("unknown_ca_user", "path", "UNKNOWN_CA"),
        ("forged_user", "path", "BAD_SIGNATURE"),
        ("expired_proxy", "path", "PROXY_EXPIRED"),
        ("full_below_limited", "proxy rules", "PROXY_RIGHTS_WIDENED"),
        ("pathlen_exceeded_chain", "path", "PROXY_PATH_LENGTH_EXCEEDED"),
        ("outside_namespace_user", "namespaces", "NAMESPACE_VIOLATION"),
    ],
)
def test_a_refusal_names_its_step_and_what_was_not_reached(judge: Judge, fault: str, step: str, reason: str) -> None:
    code, answer = judge.verify(getattr(judge.grid, fault)())
    assert code == 1 and not answer["accepted"] and answer["reason"] == reason
    told = outcomes(answer)
    names = list(told)
    assert told[step] == "refused"
    assert all(told[name] == "passed" for name in names[: names.index(step)])
    assert all(told[name] == "not reached" for name in names[names.index(step) + 1 :])
    assert reason in answer["conclusion"]


def test_any_order_keys_and_the_authority_do_not_matter(judge: Judge, tmp_path: Path) -> None:
    proxy = judge.grid.proxy(judge.grid.proxy("alice"))
    proxy.save(tmp_path / "with-key.pem")
    for material in (
        certificates.pem(tuple(reversed(proxy.certificates))),
        chain_of(proxy, judge.grid.ca),
        (tmp_path / "with-key.pem").read_bytes(),
        certificates.pem([judge.grid.ca.certificate, *reversed(proxy.certificates)]),
    ):
        code, answer = judge.verify(material)
        assert code == 0 and answer["proxy_depth"] == 2
    der = judge.grid.user("bob").certificate.public_bytes(serialization.Encoding.DER)
    assert judge.verify(der)[0] == 0


def test_hosts_are_judged_by_their_name(judge: Judge) -> None:
    host = judge.grid.host("ce.example.org")
    assert judge.verify(host, "--host", "ce.example.org")[0] == 0
    code, answer = judge.verify(host, "--host", "se.example.org")
    assert code == 1 and answer["reason"] == "HOST_NAME_MISMATCH" and outcomes(answer)["purpose"] == "refused"
    assert judge.verify(judge.grid.proxy(host), "--host", "ce.example.org")[1]["reason"] == "PROXY_NOT_ALLOWED"
    assert judge.verify(host)[0] == 0


def test_missing_and_expired_lists_are_refused_warned_of_or_ignored(judge: Judge) -> None:
    alice = judge.grid.user("alice")
    for spoil, reason in ((judge.grid.expired_crl, "CRL_EXPIRED"), (judge.grid.missing_crl, "CRL_MISSING")):
        spoil()
        assert judge.verify(alice)[1]["reason"] == reason
        code, answer = judge.verify(alice, "--crl", "warn")
        assert code == 0 and outcomes(answer)["revocation lists"] == "warning"
        code, answer = judge.verify(alice, "--crl", "ignore")
        assert code == 0 and outcomes(answer)["revocation lists"] == "passed"


def test_a_revoked_person_is_refused_whatever_is_ignored(judge: Judge) -> None:
    proxy = judge.grid.proxy("alice")
    judge.grid.revoke(proxy)
    code, answer = judge.verify(proxy, "--crl", "ignore", "--namespaces", "off")
    assert code == 1 and answer["reason"] == "CERTIFICATE_REVOKED"


def test_namespaces_can_be_left_out(judge: Judge) -> None:
    code, answer = judge.verify(judge.grid.outside_namespace_user(), "--namespaces", "off")
    assert code == 0 and outcomes(answer)["namespaces"] == "skipped"


def test_time_is_what_is_asked_for(judge: Judge, tmp_path: Path) -> None:
    path = judge.file("proxy.pem", judge.grid.proxy("alice").pem_chain())
    trust = ["--trust-dir", str(judge.grid.trust_directory)]
    assert judge("proxy", "verify", path, *trust, "--at", "2026-06-01T12:00:00+00:00")[0] == 0
    assert judge("proxy", "verify", path, *trust, "--at", "2026-06-02T01:00")[1]["reason"] == "PROXY_EXPIRED"
    assert judge("proxy", "verify", path, *trust, "--at", "2026-05-31")[1]["reason"] == "NOT_YET_VALID"
    for nonsense in ("tomorrow", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59", ""):
        assert judge("proxy", "verify", path, *trust, "--at", nonsense)[0] == 2


def test_weak_material_passes_only_when_allowed(judge: Judge) -> None:
    key = rsa.generate_private_key(65537, 1024)
    subject = DistinguishedName.parse("/C=XX/O=TestGrid/CN=old").to_x509()
    weak = certificates.pem([judge.grid.certificate(subject, key)])
    assert judge.verify(weak)[1]["reason"] == "KEY_TOO_WEAK"
    assert judge.verify(weak, "--allow-weak")[0] == 0


def test_material_of_the_time_before_sha1_was_broken(judge: Judge, tmp_path: Path) -> None:
    """An authority of 1024 bits that signs with MD5, as openssl makes it; its list too."""
    trust = tmp_path / "old"
    trust.mkdir()
    config = judge.file("ca.cnf", OLD_CA.format(folder=trust))
    for line in (
        f"req -x509 -newkey rsa:1024 -nodes -md5 -keyout {trust}/key.pem -out {trust}/ca.pem -subj /O=Old/CN=CA "
        f"-days 9000 -config {config} -extensions v3_ca",
        f"req -new -newkey rsa:1024 -nodes -md5 -keyout {trust}/u.key -out {trust}/u.csr -subj /O=Old/CN=u "
        f"-config {config}",
        f"x509 -req -md5 -in {trust}/u.csr -CA {trust}/ca.pem -CAkey {trust}/key.pem -set_serial 7 -days 8000 "
        f"-out {trust}/u.pem",
        f"ca -gencrl -md md5 -config {config} -crldays 9000 -out {trust}/crl.pem",
    ):
        (trust / "index.txt").touch()
        (trust / "number").write_text("01\n")
        done = subprocess.run(["openssl", *line.split()], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this openssl makes no such material: {done.stderr[-200:]}")
    authority = x509.load_pem_x509_certificate((trust / "ca.pem").read_bytes())
    stem = subject_hash(authority)
    (trust / f"{stem}.0").write_bytes((trust / "ca.pem").read_bytes())
    (trust / f"{stem}.r0").write_bytes((trust / "crl.pem").read_bytes())
    (trust / f"{stem}.signing_policy").write_text(
        "access_id_CA X509 '/O=Old/CN=CA'\npos_rights globus CA:sign\ncond_subjects globus '\"/O=Old/*\"'\n"
    )
    words = ["proxy", "verify", str(trust / "u.pem"), "--trust-dir", str(trust)]
    code, answer = judge(*words)
    assert code == 1 and answer["reason"] == "KEY_TOO_WEAK"
    code, answer = judge(*words, "--allow-weak")
    assert code == 0, answer
    code, answer = judge("ca", "verify-crl", str(trust / "crl.pem"), "--ca", str(trust / "ca.pem"))
    assert code == 1 and "md5, a broken digest" in answer["conclusion"]


OLD_CA = """[req]
distinguished_name=dn
[dn]
[v3_ca]
basicConstraints=critical,CA:true
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=hash
[ca]
default_ca=a
[a]
database={folder}/index.txt
crlnumber={folder}/number
certificate={folder}/ca.pem
private_key={folder}/key.pem
default_md=md5
"""


def test_attributes_are_verified_by_the_files_of_the_vo(judge: Judge, tmp_path: Path) -> None:
    grid = judge.grid
    alice, server = grid.user("alice"), grid.host("localhost", subject="voms-localhost")
    encoded = voms.create_attribute_certificate(
        server, alice.certificate, vo="testvo", uri="localhost:15000", fqans=["/testvo"],
        lifetime=timedelta(hours=12), now=grid.now,
    )  # fmt: skip
    proxy = create_proxy(
        alice, lifetime=timedelta(hours=12), now=grid.now, extensions=[voms.proxy_extension([encoded])]
    )
    folder = tmp_path / "vomsdir"
    (folder / "testvo").mkdir(parents=True)
    code, answer = judge.verify(proxy, "--vomsdir", str(folder))
    assert code == 1 and outcomes(answer)["attributes"] == "refused"
    (folder / "testvo" / "localhost.lsc").write_text(voms.lsc_text([server.subject, grid.ca.subject]))
    code, answer = judge.verify(proxy, "--vomsdir", str(folder))
    assert code == 0 and "/testvo" in str([step for step in answer["steps"] if step["step"] == "attributes"])
    assert judge.verify(grid.proxy(alice), "--vomsdir", str(folder))[0] == 0


@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_chain_is_unusable(judge: Judge, content: bytes) -> None:
    code, answer = judge.verify(content)
    assert code == 2 and answer["error"]["reason"] == "UNUSABLE_INPUT"
    assert "http" not in answer["error"]["sentence"]


def test_missing_files_and_folders_are_unusable(judge: Judge, tmp_path: Path) -> None:
    assert judge("proxy", "verify", str(tmp_path / "none"), *judge.where())[0] == 2
    chain = judge.file("chain.pem", judge.grid.user("alice").pem_chain())
    assert judge("proxy", "verify", chain, "--trust-dir", str(tmp_path / "none"))[0] == 2
    assert judge("proxy", "verify", str(tmp_path), *judge.where())[0] == 2
    assert judge("mapfile", "check", str(tmp_path / "none"), "--dn", "/CN=a")[0] == 2
    assert judge("ca", "verify-crl", str(tmp_path / "none"), *judge.where())[0] == 2


def test_the_table_for_people(judge: Judge) -> None:
    chain = judge.file("chain.pem", judge.grid.proxy("alice").pem_chain())
    code, text = judge.text("proxy", "verify", chain, *judge.where())
    assert code == 0
    assert text.splitlines()[-1] == "accepted: a proxy of /C=XX/O=TestGrid/CN=alice, until 2026-06-02T00:00:00Z"
    assert text.startswith("passed  parse ")


# grid ca


def test_ca_show(judge: Judge) -> None:
    code, found = judge("ca", "show", "--trust-dir", str(judge.grid.trust_directory))
    assert code == 0 and len(found) == 1
    assert found[0]["subject"] == "/C=XX/O=TestGrid/CN=TestGrid CA"
    assert found[0]["may_sign"] == ["/C=XX/O=TestGrid/*"]
    stem = subject_hash(judge.grid.ca.certificate)
    assert judge("ca", "show", stem, "--trust-dir", str(judge.grid.trust_directory))[0] == 0
    assert judge("ca", "show", "nobody", "--trust-dir", str(judge.grid.trust_directory))[0] == 2


def test_ca_lint_tells_errors_and_warnings(judge: Judge) -> None:
    assert judge("ca", "lint", *judge.where())[0] == 0
    assert judge("ca", "lint", "--profile", "nonsense", *judge.where())[0] == 2
    judge.grid.signing_policy_path.unlink()
    code, answer = judge("ca", "lint", *judge.where())
    assert code == 1
    assert [step["step"] for step in answer["steps"] if step["outcome"] == "error"] == ["namespaces"]


def test_verify_crl(judge: Judge) -> None:
    grid = judge.grid
    newer = judge.file("new.crl", grid.ca.build_crl(NOW, timedelta(days=1)))
    words = ["ca", "verify-crl", newer, *judge.where()]
    assert judge(*words)[0] == 0
    grid.publish_crl()
    code, answer = judge(*words)
    assert code == 1 and "older than the installed one" in answer["conclusion"]
    assert judge(*words, "--ca", judge.file("ca.pem", grid.ca.ca_pem()))[0] == 0
    for name, crl in (
        ("forged", grid.same_name_authority().build_crl(NOW, timedelta(days=1))),
        ("foreign", grid.unknown_authority().build_crl(NOW, timedelta(days=1))),
        ("expired", grid.ca.build_crl(NOW - timedelta(days=9), timedelta(days=1))),
        ("future", grid.ca.build_crl(NOW + timedelta(days=9), timedelta(days=1))),
    ):
        assert judge("ca", "verify-crl", judge.file(name, crl), *judge.where())[0] == 1, name
    assert judge("ca", "verify-crl", judge.file("garbage", b"garbage"), *judge.where())[0] == 2


# grid mapfile

MAP = '# people\n"/O=a/CN=b" x,.pool\nbad line\n"/O=a/CN=root" root\n/cms/Role=production prod\n"/cms/*" .cms\n'


def test_mapfile_check(judge: Judge) -> None:
    path = judge.file("map", MAP)
    code, answer = judge("mapfile", "check", path, "--dn", "/O=a/CN=b")
    assert code == 0 and (answer["accounts"], answer["line"]) == (["x", ".pool"], 2)
    assert [step["step"] for step in answer["steps"] if step["outcome"] == "malformed"] == ["line 3", "line 4"]
    code, answer = judge("mapfile", "check", path, "--dn", "/O=a/CN=c")
    assert code == 1 and "no line" in answer["conclusion"]
    assert judge("mapfile", "check", path, "--dn", "/O=a/CN=root")[0] == 1
    assert judge("mapfile", "check", path, "--dn", "nonsense")[0] == 2


def test_the_first_rule_that_matches_a_group_decides(judge: Judge) -> None:
    path = judge.file("map", MAP)
    check = ["mapfile", "check", path, "--dn", "/O=a/CN=b"]
    code, answer = judge(*check, "--fqan", "/cms/higgs/Role=NULL/Capability=NULL", "--fqan", "/cms/Role=production")
    assert code == 0 and (answer["accounts"], answer["line"]) == (["prod"], 5)
    assert judge(*check, "--fqan", "/cms/higgs")[1]["line"] == 6
    assert judge(*check, "--fqan", "/atlas")[1]["line"] == 2
    assert judge(*check, "--fqan", "nonsense")[0] == 2


def test_mapfile_diff(judge: Judge) -> None:
    old, new = judge.file("old", MAP), judge.file("new", '"/O=a/CN=b" y\n"/O=a/CN=c" z\n"/cms/*" .cms\n')
    code, answer = judge("mapfile", "diff", old, new)
    assert code == 1
    assert (answer["gains"], answer["loses"], answer["changes"], answer["same"]) == (1, 1, 1, 1)
    assert judge("mapfile", "diff", old, old)[0] == 0
    assert judge("mapfile", "diff", old, judge.file("more", MAP + '"/O=a/CN=d" w\n'))[0] == 0
    assert judge("mapfile", "diff", old, judge.file("binary", b"\xff\xfe"))[0] == 2
