"""Our credential store and the MyProxy clients as Debian ships them: what they store, get, list, and are refused."""

from __future__ import annotations

import asyncio
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.grid import ORGANISATION, LabGrid

from security.credentials import Credential
from security.names import DistinguishedName
from security.testing import shared_key
from security.validation import validate_client_chain

pytestmark = pytest.mark.skipif(shutil.which("myproxy-init") is None, reason="myproxy is not installed")

PASSPHRASE = b"open sesame\n"


class Desk:
    """One user's machine and the C tools."""

    def __init__(self, lab: LabGrid, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        folder.mkdir()
        self.proxy = folder / "proxy.pem"
        self.user: tuple[Path, Path] | None = None
        self.credential: Path | None = None

    def log_in(self, name: str, *, vo: str | None = "cms", key_type: str = "rsa-2048") -> Credential:
        """Certificate and key of a person; the C tools sign with RSA keys only."""
        self.lab._users[name] = found = self.certificate(f"{ORGANISATION}/OU=Users/CN={name}", key_type)
        if vo is not None:
            self.lab.user(name, vo=vo)
        self.user = self.lab.grid.save_user(found, self.folder / name)
        return found

    def certificate(self, subject: str, key_type: str = "rsa-2048") -> Credential:
        key = shared_key(key_type, 40 + len(subject))
        certificate = self.lab.grid.ca.issue_user(
            DistinguishedName.parse(subject),
            key.public_key(),
            lifetime=timedelta(days=30),
            now=self.lab.grid.now,
            renew=True,
        )
        return Credential(certificate, key)

    async def run(self, command: str, *options: str, stdin: bytes = b"", **more: str) -> str:
        """Output of a tool, with its exit code as the first word."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "LOGNAME": "ada",
            "X509_CERT_DIR": str(self.lab.certificates),
            "X509_USER_PROXY": str(self.proxy),
            "MYPROXY_SERVER": "localhost",
            "MYPROXY_SERVER_PORT": str(self.lab.port("myproxy.CERN", "myproxy")),
            "MYPROXY_SERVER_DN": str(self.lab.service("myproxy").subject),
            **({"X509_USER_CERT": str(self.user[0]), "X509_USER_KEY": str(self.user[1])} if self.user else {}),
            **more,
        }
        process = await asyncio.create_subprocess_exec(
            command,
            *options,
            env={name: value for name, value in environment.items() if value},
            cwd=self.folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(60):
            output, _ = await process.communicate(stdin)
        return f"{process.returncode} {output.decode('utf-8', 'replace')}"

    async def store(self, *options: str, passphrase: bytes = PASSPHRASE) -> str:
        stdin = ("-S",) if passphrase else ()
        return await self.run("myproxy-init", "-c", "24", *stdin, *options, stdin=passphrase)

    async def logon(self, *options: str, passphrase: bytes = PASSPHRASE, **more: str) -> str:
        stdin = ("-S",) if passphrase else ()
        nobody = {"X509_USER_CERT": "/dev/null", "X509_USER_KEY": "/dev/null", "X509_USER_PROXY": "/dev/null"}
        return await self.run(
            "myproxy-logon", *stdin, "-o", str(self.proxy), *options, stdin=passphrase, **{**nobody, **more}
        )

    def received(self):
        """What our validator finds in the proxy that the tool wrote."""
        lab = self.lab
        return validate_client_chain(
            Credential.load(self.proxy).pem_chain(), lab.grid.trust, lab.grid.policy, datetime.now(UTC)
        )


@pytest.fixture
async def lab(tmp_path):
    async with LabGrid(tmp_path, key_type="rsa-2048") as found:
        await found.start("myproxy", options={"scrypt_log2_n": 10})
        yield found


@pytest.fixture
async def desk(lab, tmp_path):
    return Desk(lab, tmp_path / "desk")


async def test_store_and_log_on_without_any_certificate(lab, desk):
    ada = desk.log_in("ada")
    told = await desk.store()
    assert told.startswith("0 ") and "now exists on localhost" in told, told
    told = await desk.logon("-t", "2")
    assert told.startswith("0 "), told
    found = desk.received()
    assert found.subject == ada.subject and found.proxy_depth == 3 and not found.is_limited
    left = found.not_after - datetime.now(UTC)
    assert timedelta(hours=1, minutes=55) < left <= timedelta(hours=2)
    told = await desk.run("grid-proxy-info", "-file", str(desk.proxy))
    assert told.startswith("0 ") and "RFC 3820 compliant impersonation proxy" in told, told


def refusals(lab: LabGrid) -> list[str]:
    return [line["sentence"] for line in lab.audit("myproxy.CERN", "credential.refused")]


async def stored(lab: LabGrid, desk: Desk, *options: str, **more: bytes) -> Credential:
    ada = desk.log_in("ada")
    told = await desk.store(*options, **more)
    assert told.startswith("0 "), told
    return ada


def same_sentence(lab: LabGrid, told: str, words: str) -> None:
    """The client read what the audit log says."""
    assert not told.startswith("0 "), told
    sentence = refusals(lab)[-1]
    assert words in sentence and sentence in told, (sentence, told)


async def test_info_and_destroy(lab, desk):
    ada = await stored(lab, desk)
    assert (await desk.store("-k", "second", "-K", "for the portal", "-r", "portal")).startswith("0 ")
    told = await desk.run("myproxy-info")
    assert told.startswith("0 "), told
    for line in (
        f"owner: {ada.subject}",
        "name: second",
        "description: for the portal",
        "retrieval policy: */CN=portal",
    ):
        assert line in told, (line, told)
    told = await desk.run("myproxy-destroy", "-k", "second")
    assert told.startswith("0 ") and "'second'" in told, told
    assert "second" not in await desk.run("myproxy-info")
    assert (await desk.run("myproxy-destroy")).startswith("0 ")
    same_sentence(lab, await desk.run("myproxy-info"), "no credential of")
    same_sentence(lab, await desk.run("myproxy-destroy"), "no credential of")
    same_sentence(lab, await desk.logon(), "no proxy is given")


async def test_another_passphrase(lab, desk):
    await stored(lab, desk)
    told = await desk.run("myproxy-change-pass-phrase", "-S", stdin=b"wrong one\nnew passphrase\n")
    same_sentence(lab, told, "the current passphrase is not right")
    told = await desk.run("myproxy-change-pass-phrase", "-S", stdin=PASSPHRASE + b"new passphrase\n")
    assert told.startswith("0 Pass phrase changed"), told
    same_sentence(lab, await desk.logon(), "no proxy is given")
    assert (await desk.logon(passphrase=b"new passphrase\n")).startswith("0 ")


async def test_a_renewer_with_a_proof_of_the_owner(lab, desk):
    """What a broker does: its own host certificate, no passphrase, and the proxy that is about to end."""
    ada = await stored(lab, desk, "-n", "-x", "-R", f"{ORGANISATION}/OU=*/CN=broker/*", passphrase=b"")
    ending = desk.folder / "ending.pem"
    lab.user("ada").save(ending)
    broker = lab.grid.save_user(lab.service("broker"), desk.folder / "broker")
    host = {"X509_USER_CERT": str(broker[0]), "X509_USER_KEY": str(broker[1])}
    told = await desk.logon("-a", str(ending), "-t", "3", passphrase=b"", **host)
    assert told.startswith("0 "), told
    assert desk.received().subject == ada.subject
    (line,) = lab.audit("myproxy.CERN", "credential.delegated")
    assert (line["how"], line["peer"]) == ("renewal", str(lab.service("broker").subject))
    # without a proof, of somebody else, by somebody else
    told = await desk.logon("-n", passphrase=b"", **host)
    assert not told.startswith("0 "), told
    lab.user("bob").save(ending)
    same_sentence(lab, await desk.logon("-a", str(ending), passphrase=b"", **host), "not the owner")
    storage = lab.grid.save_user(lab.service("storage"), desk.folder / "storage")
    lab.user("ada").save(ending)
    told = await desk.logon(
        "-a", str(ending), passphrase=b"", X509_USER_CERT=str(storage[0]), X509_USER_KEY=str(storage[1])
    )
    same_sentence(lab, told, "no proxy is given")
    same_sentence(lab, await desk.logon("-a", str(ending), passphrase=b""), "no proxy is given")


async def test_a_trusted_retriever_needs_no_secret(tmp_path):
    portal = f"{ORGANISATION}/OU=CERN/CN=portal/web"
    async with LabGrid(tmp_path, key_type="rsa-2048") as lab:
        await lab.start("myproxy", options={"trusted_retrievers": [portal]})
        desk = Desk(lab, tmp_path / "desk")
        await stored(lab, desk, "-x", "-Z", portal, passphrase=b"")
        own = lab.grid.save_user(lab.service("portal", "web"), desk.folder / "portal")
        told = await desk.logon("-n", passphrase=b"", X509_USER_CERT=str(own[0]), X509_USER_KEY=str(own[1]))
        assert told.startswith("0 "), told
        same_sentence(lab, await desk.logon("-n", passphrase=b""), "no proxy is given")
        other = lab.grid.save_user(lab.service("portal", "evil"), desk.folder / "evil")
        told = await desk.logon("-n", passphrase=b"", X509_USER_CERT=str(other[0]), X509_USER_KEY=str(other[1]))
        same_sentence(lab, told, "no proxy is given")


async def test_wrong_passphrase_unknown_user_and_wrong_retriever_sound_the_same(lab, desk):
    await stored(lab, desk, "-r", "portal")
    wrong = await desk.logon(passphrase=b"not this one\n")
    same_sentence(lab, wrong, "no proxy is given")
    excluded = await desk.logon()
    unknown = await desk.logon("-l", "bob")
    assert wrong == excluded == unknown.replace("bob", "ada")
    whys = [line["why"] for line in lab.audit("myproxy.CERN", "credential.refused")]
    assert whys == ["wrong passphrase", "not a retriever of this credential", "unknown"]
    log = "".join(path.read_text() for path in (lab.directory / "agents" / "myproxy.CERN").glob("*.jsonl"))
    assert "not this one" not in log and "open sesame" not in log and "PRIVATE" not in log


async def test_after_some_guesses_one_waits(tmp_path):
    async with LabGrid(tmp_path, key_type="rsa-2048") as lab:
        await lab.start("myproxy", options={"scrypt_log2_n": 10, "failures_per_peer": 2, "back_off_s": 3600})
        desk = Desk(lab, tmp_path / "desk")
        await stored(lab, desk)
        for _ in range(2):
            same_sentence(lab, await desk.logon(passphrase=b"a bad guess\n"), "no proxy is given")
        same_sentence(lab, await desk.logon(), "too many wrong attempts from you; try again in 900 s")


@pytest.mark.parametrize("what", ["revoked", "banned", "expelled"])
async def test_nothing_is_given_of_an_owner_who_is_no_longer_good(lab, desk, what):
    ada = await stored(lab, desk)
    if what == "revoked":
        lab.revoke(ada)
    elif what == "banned":
        lab.ban("ada")
    else:
        lab.expel("ada")
    agent = lab.agents["myproxy.CERN"].context
    agent.trust.refresh()
    agent.judge.refresh()
    words = {"revoked": "revoked", "banned": "banned", "expelled": "not in the map file"}[what]
    same_sentence(lab, await desk.logon(), words)
    assert not desk.proxy.exists()
    if what != "expelled":
        same_sentence(lab, await desk.run("myproxy-info"), words)
    if what != "revoked":  # grid-proxy-init itself refuses
        same_sentence(lab, await desk.store(), words)


async def test_what_may_not_be_stored(lab, desk):
    desk.log_in("eve", vo=None)
    same_sentence(lab, await desk.store(), "not in the map file")
    desk.log_in("ada")
    same_sentence(lab, await desk.store("-l", "open sesame"), "the passphrase is the user name")
    same_sentence(lab, await desk.run("myproxy-init", "-c", "400", "-S", stdin=PASSPHRASE), "longer than the 168 hours")
    assert (await desk.store()).startswith("0 ")
    desk.log_in("bob")
    same_sentence(lab, await desk.store(), "in use here by somebody else")
    same_sentence(lab, await desk.run("myproxy-destroy"), "no credential of")
    same_sentence(lab, await desk.run("myproxy-info"), "no credential of")


async def test_private_keys_do_not_travel(lab, desk):
    await stored(lab, desk)
    lab.user("ada").save(desk.proxy)
    told = await desk.run("myproxy-retrieve", "-S", "-c", "got.pem", "-y", "key.pem", stdin=PASSPHRASE)
    same_sentence(lab, told, "private keys do not leave")
    key = desk.folder / "locked.pem"
    (await desk.run("openssl", "rsa", "-aes128", "-passout", "pass:secret", "-in", str(desk.user[1]), "-out", str(key)))
    key.chmod(0o600)
    told = await desk.run("myproxy-store", "-c", str(desk.user[0]), "-y", str(key), "-l", "eec", "-t", "12")
    same_sentence(lab, told, "takes no private keys")
    same_sentence(lab, await desk.run("myproxy-get-trustroots"), "no authorities' certificates")


async def test_a_site_may_let_owners_have_their_keys(tmp_path):
    async with LabGrid(tmp_path, key_type="rsa-2048") as lab:
        owners = [f"{ORGANISATION}/OU=Users/CN=ada"]
        await lab.start("myproxy", options={"scrypt_log2_n": 10, "key_retrievers": owners})
        desk = Desk(lab, tmp_path / "desk")
        ada = await stored(lab, desk)
        names = ("-c", "got.pem", "-y", "key.pem")
        same_sentence(
            lab, await desk.run("myproxy-retrieve", "-S", *names, stdin=b"a bad guess\n"), "no proxy is given"
        )
        told = await desk.run("myproxy-retrieve", "-S", *names, stdin=PASSPHRASE)
        assert told.startswith("0 "), told
        certificate, key = desk.folder / "got.pem", desk.folder / "key.pem"
        assert key.stat().st_mode & 0o077 == 0
        found = Credential.load(certificate, key, passphrase=PASSPHRASE.strip)
        assert found.identity == ada.subject
        (line,) = lab.audit("myproxy.CERN", "credential.retrieved")
        assert line["peer"] == str(ada.subject)
        desk.log_in("bob")
        told = await desk.run("myproxy-retrieve", "-S", "-l", "ada", "-c", "b.pem", "-y", "k.pem", stdin=PASSPHRASE)
        same_sentence(lab, told, "private keys do not leave")


async def test_a_limited_proxy_lists_and_gets_limited_ones_and_changes_nothing(lab, desk):
    await stored(lab, desk)
    lab.user("ada", limited=True).save(desk.proxy)
    desk.user = None
    assert (await desk.run("myproxy-info")).startswith("0 ")
    same_sentence(lab, await desk.run("myproxy-destroy"), "limited proxy")
    told = await desk.run("myproxy-change-pass-phrase", "-S", stdin=PASSPHRASE + b"new passphrase\n")
    same_sentence(lab, told, "limited proxy")
    told = await desk.run("myproxy-logon", "-S", "-o", "limited.pem", stdin=PASSPHRASE)
    assert told.startswith("0 "), told
    desk.proxy = desk.folder / "limited.pem"
    assert desk.received().is_limited
