"""The credential store over its port: the rules that the C clients cannot be made to break, deadlines, kills."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import ssl
import sys
from datetime import timedelta

import pytest
from support.grid import ORGANISATION, LabGrid, Offset

from agents.myproxy import protocol
from agents.myproxy.client import MyProxyClient
from agents.myproxy.protocol import Command, Request
from fabric.errors import DeadlineExceeded, GridError, Refused, Unavailable
from security import certificates, proxies
from security.credentials import Credential

PASS = b"open sesame"
FAST = {"scrypt_log2_n": 10, "key_type": "ec-p256"}
ADA = f"{ORGANISATION}/OU=Users/CN=ada"
HOUR = timedelta(hours=1)


@pytest.fixture
async def lab(tmp_path):
    async with LabGrid(tmp_path) as found:
        yield found


async def start(lab: LabGrid, **options) -> None:
    await lab.start("myproxy", options={**FAST, **options})


def client(lab: LabGrid, credential: Credential | None = None) -> MyProxyClient:
    port = lab.port("myproxy.CERN", "myproxy")
    return MyProxyClient("localhost", port, lab._trust, lab.grid.policy, lab.clock, credential, timeout_s=20)


async def refusal(call) -> str:
    with pytest.raises(Refused) as caught:
        await call
    assert caught.value.reason == "MYPROXY_REFUSED"
    return caught.value.sentence


def audited(lab: LabGrid, event: str = "credential.refused") -> list[dict]:
    return lab.audit("myproxy.CERN", event)


async def raw(lab: LabGrid, certificate: Credential | None = None):
    """A TLS connection with nothing of the protocol in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate is not None:
        path = lab.directory / "raw.pem"
        certificate.save(path)
        context.load_cert_chain(path)
    return await asyncio.open_connection("127.0.0.1", lab.port("myproxy.CERN", "myproxy"), ssl=context)


async def answer_to(lab: LabGrid, data: bytes, certificate: Credential | None = None) -> str:
    reader, writer = await raw(lab, certificate)
    writer.write(data)
    async with asyncio.timeout(60):
        found = await reader.read()
    writer.close()
    return found.decode()


async def test_store_log_on_list_change_destroy(lab):
    await start(lab)
    ada = lab.user("ada")
    await client(lab, ada).put("ada", PASS, description="for tests", delegated=2 * HOUR)
    got = await client(lab).get("ada", PASS, lifetime=10 * HOUR)
    assert str(got.identity) == ADA
    left = got.not_after - lab.clock.now()
    assert timedelta(hours=1.9) < left <= 2 * HOUR  # the owner's limit
    assert (await client(lab, ada).info("ada"))["CRED_OWNER"] == ADA
    await client(lab, ada).change_passphrase("ada", PASS, b"another one")
    assert "no proxy is given" in await refusal(client(lab).get("ada", PASS))
    await client(lab).get("ada", b"another one")
    await client(lab, ada).destroy("ada")
    assert "no proxy is given" in await refusal(client(lab).get("ada", b"another one"))
    events = [line["event"] for line in lab.audit("myproxy.CERN") if line["event"].startswith("credential.")]
    assert events == [
        "credential.stored", "credential.delegated", "credential.passphrase_changed", "credential.refused",
        "credential.delegated", "credential.destroyed", "credential.refused",
    ]  # fmt: skip


async def test_no_secret_is_on_the_disk(lab):
    await start(lab)
    await client(lab, lab.user("ada")).put("ada", PASS)
    got = await client(lab).get("ada", PASS)
    assert got.key is not None
    await lab.stop("myproxy.CERN")
    folder = lab.directory / "agents" / "myproxy.CERN"
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert PASS not in content and b"PRIVATE KEY" not in content, path
            assert path.name in ("ready",) or path.stat().st_mode & 0o077 == 0 or content == b"", path
    with sqlite3.connect(folder / "myproxy.db") as data_base:
        ((sealed,),) = data_base.execute("select sealed from credentials").fetchall()
    assert len(sealed) > 100 and b"\x06\x07\x2a\x86\x48\xce\x3d" not in sealed  # id-ecPublicKey


async def test_the_store_survives_a_restart_and_needs_its_key_file(lab):
    await start(lab)
    await client(lab, lab.user("ada")).put("ada", PASS)
    await lab.stop("myproxy.CERN")
    await start(lab)
    await client(lab).get("ada", PASS)
    await lab.stop("myproxy.CERN")
    (lab.directory / "agents" / "myproxy.CERN" / "myproxy.key").unlink()
    with pytest.raises(GridError) as caught:
        await start(lab)
    assert caught.value.reason == "KEY_FILE_MISSING"


async def test_a_row_altered_in_the_data_base_gives_nothing(lab):
    await start(lab)
    await client(lab, lab.user("ada")).put("ada", renewers="*/CN=nobody")
    await lab.stop("myproxy.CERN")
    with sqlite3.connect(lab.directory / "agents" / "myproxy.CERN" / "myproxy.db") as data_base:
        data_base.execute("update credentials set renewers = '*'")
    await start(lab)
    told = await refusal(client(lab, lab.service("broker")).get("ada", proof=lab.user("ada")))
    assert "was altered" in told and audited(lab)[-1]["reason"] == "CREDENTIAL_DAMAGED"


async def test_renewal_as_the_field_does_it(lab):
    """`myproxy-init -d -n`: the DN is the user name, no passphrase, nobody named: the site's brokers may."""
    await start(lab)
    ada = lab.user("ada")
    await client(lab, ada).put(ADA)
    got = await client(lab, lab.service("broker")).get(ADA, proof=lab.user("ada", hours=0.1))
    assert str(got.identity) == ADA and got.not_after > lab.clock.now() + 5 * HOUR
    (line,) = audited(lab, "credential.delegated")
    assert line["how"] == "renewal"


@pytest.mark.parametrize(
    ("who", "proof", "words"),
    [
        ("broker", "nobody", "proof of the owner"),
        ("broker", "bob", "not the owner"),
        ("broker", "expired", "expired"),
        ("broker", "revoked", "revoked"),
        ("broker", "stolen chain", "not made with the key"),
        ("storage", "ada", "no proxy is given"),
        ("anonymous", "ada", "no proxy is given"),
        ("bob", "ada", "no proxy is given"),
        ("ada", "ada", "no proxy is given"),  # a stolen proxy must not live for ever
    ],
)
async def test_renewals_that_are_refused(tmp_path, who, proof, words):
    clock = Offset()
    async with LabGrid(tmp_path, clock=clock) as lab:
        await start(lab)
        await client(lab, lab.user("ada")).put("ada")
        caller = {
            "broker": lambda: lab.service("broker"),
            "storage": lambda: lab.service("storage"),
            "anonymous": lambda: None,
            "bob": lambda: lab.user("bob"),
            "ada": lambda: lab.user("ada"),
        }[who]()
        shown = lab.user("bob" if proof == "bob" else "ada", hours=0.5)
        if proof == "expired":
            clock.ahead = timedelta(minutes=45)
        elif proof == "revoked":
            lab.revoke(shown)
            lab.agents["myproxy.CERN"].context.trust.refresh()
        elif proof == "stolen chain":
            other = lab.user("ada", hours=0.5)
            shown = _Forged(shown, other)
        call = client(lab, caller).get("ada", proof=None if proof == "nobody" else shown)
        if proof == "nobody":
            with pytest.raises(Refused, match=words):
                await call
        else:
            told = await refusal(call)
            assert words in told and told == audited(lab)[-1]["sentence"]
        assert audited(lab, "credential.delegated") == []


class _Forged:
    """Somebody's chain and another key's signature."""

    def __init__(self, chain: Credential, key: Credential) -> None:
        self.certificates, self.sign = chain.certificates, key.sign


async def test_a_limited_proof_renews_a_limited_proxy(lab):
    await start(lab)
    await client(lab, lab.user("ada")).put("ada")
    got = await client(lab, lab.service("broker")).get("ada", proof=lab.user("ada", limited=True))
    info = proxies.proxy_info(got.certificate)
    assert info is not None and info.kind is proxies.ProxyKind.LIMITED


@pytest.mark.parametrize(
    ("put", "words"),
    [
        ({"passphrase": b"short"}, "shorter than the 6 bytes"),
        ({"username": "open sesame", "passphrase": PASS}, "the passphrase is the user name"),
        ({"passphrase": PASS, "renewers": "*"}, "has no passphrase"),
        ({"passphrase": PASS, "trusted_retrievers": "*"}, "has no passphrase"),
        ({"username": "a\x07b", "passphrase": PASS}, "cannot be printed"),
        ({"name": "a,b", "passphrase": PASS}, "name of a credential"),
    ],
)
async def test_what_is_not_stored(lab, put, words):
    await start(lab)
    told = await refusal(client(lab, lab.user("ada")).put(**{"username": "ada", **put}))
    assert words in told and audited(lab)[-1]["sentence"] == told


async def test_what_nobody_could_retrieve_is_not_stored(lab):
    await start(lab, default_renewers=[])
    told = await refusal(client(lab, lab.user("ada")).put("ada"))
    assert "could be retrieved by nobody" in told and audited(lab)[-1]["sentence"] == told
    await client(lab, lab.user("ada")).put("ada", renewers="*/CN=broker/*")


async def test_who_may_not_store(lab):
    await start(lab, accepted=[f"{ORGANISATION}/OU=Users/CN=a*"])
    await client(lab, lab.user("ada")).put("ada", PASS)
    for who, words in (
        (lab.user("bob"), "may not store credentials here"),
        (lab.user("ann", vo=None), "not in the map file"),
        (lab.user("al", limited=True), "limited proxy"),
    ):
        assert words in await refusal(client(lab, who).put("other", PASS))
    text = protocol.encode_request(Request(Command.PUT, "x", passphrase=PASS))
    assert "needs your certificate" in await answer_to(lab, b"0" + text)


async def test_a_delegation_of_somebody_else_is_not_stored(lab):
    """The chain that answers the request is judged by itself, whatever the connection showed."""
    await start(lab)

    bob, ada = lab.user("bob"), client(lab, lab.user("ada"))
    with pytest.raises(Refused, match="only proxies of its own"):
        async with ada._dialogue(Request(Command.PUT, "ada", passphrase=PASS)) as running:
            await running.response()
            csr = await running.until(protocol.csr_end)
            pem = proxies.sign_request(csr, bob, lifetime=HOUR, now=lab.clock.now())
            await running.send(protocol.encode_chain(certificates.load_chain(pem)))
            await running.response()
    assert held(lab) == 0


def held(lab: LabGrid) -> float:
    return lab.agents["myproxy.CERN"].health().numbers["credentials"]


async def test_lives_are_limited(lab):
    await start(lab, max_stored_lifetime_s=2 * 3600, max_delegated_lifetime_s=3600, delegated_lifetime_s=3600)
    ada = lab.user("ada")
    told = await refusal(client(lab, ada).put("ada", PASS, lifetime=3 * HOUR))
    assert "longer than the 2 hours kept here" in told
    await client(lab, ada).put("ada", PASS, lifetime=2 * HOUR)
    got = await client(lab).get("ada", PASS, lifetime=2 * HOUR)
    assert got.not_after <= lab.clock.now() + HOUR
    got = await client(lab).get("ada", PASS, lifetime=timedelta(0))
    assert got.not_after <= lab.clock.now() + HOUR


async def test_one_owner_has_room_for_so_many(lab):
    await start(lab, max_credentials_per_owner=2, max_credentials=3)
    ada, bob = lab.user("ada"), lab.user("bob")
    for name in ("", "second", "second"):
        await client(lab, ada).put("ada", PASS, name=name)
    assert "has 2 credentials here" in await refusal(client(lab, ada).put("ada", PASS, name="third"))
    await client(lab, bob).put("bob", PASS)
    assert "is full" in await refusal(client(lab, bob).put("bob", PASS, name="second"))


async def test_ones_credential_is_nobody_elses_business(lab):
    await start(lab)
    await client(lab, lab.user("ada")).put("ada", PASS)
    bob = client(lab, lab.user("bob"))
    unknown = await refusal(bob.info("nobody"))
    assert await refusal(bob.info("ada")) == unknown.replace("nobody", "ada")
    assert "no credential of" in await refusal(bob.destroy("ada"))
    assert "no credential of" in await refusal(bob.change_passphrase("ada", PASS, b"mine now"))
    assert "in use here by somebody else" in await refusal(bob.put("ada", PASS))
    await client(lab).get("ada", PASS)
    operator = client(lab, lab.operator())
    assert (await operator.info("ada"))["CRED_OWNER"] == ADA
    await operator.destroy("ada")


async def test_passphrases_of_renewable_credentials_are_not_changed(lab):
    await start(lab)
    ada = client(lab, lab.user("ada"))
    await ada.put("ada")
    assert "has no passphrase" in await refusal(ada.change_passphrase("ada", PASS, b"another one"))
    assert "no proxy is given" in await refusal(client(lab).get("ada", PASS))
    assert audited(lab)[-1]["why"] == "renewal only"


async def test_expired_credentials_are_erased(tmp_path):
    clock = Offset()
    async with LabGrid(tmp_path, clock=clock) as lab:
        await start(lab)
        await client(lab, lab.user("ada", hours=2)).put("ada", PASS)
        clock.ahead = timedelta(hours=3)
        assert "expired" in await refusal(client(lab).get("ada", PASS))
        await lab.agents["myproxy.CERN"].agent.keeper.sweep()
        assert held(lab) == 0 and audited(lab, "credential.expired")[0]["owner"] == ADA
        assert "no proxy is given" in await refusal(client(lab).get("ada", PASS))


async def test_guesses_in_parallel_are_not_free(lab):
    await start(lab, failures_per_peer=3, back_off_s=3600, max_back_off_user_s=3600)
    await client(lab, lab.user("ada")).put("ada", PASS)
    told = await asyncio.gather(*(refusal(client(lab).get("ada", b"guess %d" % n)) for n in range(12)))
    assert sum("no proxy is given" in sentence for sentence in told) == 3
    assert sum("too many wrong attempts" in sentence for sentence in told) == 9
    assert "too many" in await refusal(client(lab).get("ada", PASS))


async def test_a_portal_that_logs_many_on_at_once_is_no_attacker(lab):
    await start(lab, failures_per_peer=2, back_off_s=3600)
    await client(lab, lab.user("ada")).put("ada", PASS)
    got = await asyncio.gather(*(client(lab).get("ada", PASS) for _ in range(12)))
    assert len(got) == 12 and audited(lab) == []


# -- what is not the protocol ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"0GET / HTTP/1.1\r\n\r\n\0", "cannot be read"),
        (b"D", "no delegation in the handshake"),
        (b"0" + b"a" * 40_000, "longer than 16384"),
        (b"0VERSION=MYPROXYv3\nCOMMAND=0\nUSERNAME=x\n\0", "speaks MYPROXYv2"),
        (b"0VERSION=MYPROXYv2\nCOMMAND=99\nUSERNAME=x\n\0", "not known"),
        (b"\0\0\0", "VERSION is missing"),
        (b"VERSION=MYPROXYv2\nCOMMAND=5\nUSERNAME=x\nPASSPHRASE=\nLIFETIME=0\n", "takes no private keys"),
    ],
)
async def test_garbage_is_answered(lab, data, words):
    await start(lab)
    told = await answer_to(lab, data)
    assert "RESPONSE=1" in told and words in told and audited(lab)[-1]["sentence"] in told


async def test_a_chain_that_is_no_good_is_told_so(lab):
    await start(lab)
    text = protocol.encode_request(Request(Command.INFO, "ada"))
    banned = lab.user("eve")
    lab.ban("eve")
    lab.agents["myproxy.CERN"].context.judge.refresh()
    assert "banned" in await answer_to(lab, b"0" + text, banned)
    assert audited(lab)[-1]["reason"] == "BANNED"


async def test_a_banned_network_gets_nothing_also_without_a_certificate(lab):
    await start(lab)
    await client(lab, lab.user("ada")).put("ada", PASS)
    lab.ban_file.write_text("network: 127.0.0.0/8\n")
    lab.agents["myproxy.CERN"].context.judge.refresh()
    assert "banned" in await refusal(client(lab).get("ada", PASS))
    assert "banned" in await refusal(client(lab, lab.user("ada")).info("ada"))


async def test_every_wait_has_an_end(lab):
    await start(lab, request_timeout_s=0.8, step_timeout_s=0.8)
    assert "did not come within 0.8 s" in await answer_to(lab, b"")
    assert "did not come within 0.8 s" in await answer_to(lab, b"0VERSION=")
    await client(lab, lab.user("ada")).put("ada", PASS)
    wanted = Request(Command.GET, "ada", passphrase=PASS)
    told = await answer_to(lab, protocol.encode_request(wanted))
    assert told.count("RESPONSE=0") == 1 and "the next message did not come" in told
    told = await answer_to(lab, protocol.encode_request(wanted) + b"\x31\x00")
    assert "no certificate request" in told


async def test_one_address_has_so_many_connections(lab):
    await start(lab, max_connections_per_address=3)
    await client(lab, lab.user("ada")).put("ada", PASS)
    held = [await asyncio.open_connection("127.0.0.1", lab.port("myproxy.CERN", "myproxy")) for _ in range(3)]
    with pytest.raises((Unavailable, DeadlineExceeded)):
        await client(lab).get("ada", PASS)
    for _, writer in held:
        writer.close()
        await writer.wait_closed()
    for _ in range(100):
        try:
            await client(lab).get("ada", PASS)
            return
        except Unavailable:
            continue
    pytest.fail("the places were not given back")


# -- killed ------------------------------------------------------------------------------------------------------------


async def _process(lab: LabGrid):
    settings = lab.directory / "settings.json"
    settings.write_text(json.dumps(lab.settings(lab.plan("myproxy"), options=FAST)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fabric.agent", str(settings), stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(60):
        line = await process.stdout.readline()
    assert b"ready" in line
    return process


async def test_killed_it_has_all_that_it_acknowledged_and_nothing_half(lab):
    process = await _process(lab)
    ada = lab.user("ada")
    acknowledged: list[int] = []

    async def put(number: int) -> None:
        try:
            await client(lab, ada).put(f"ada{number}", PASS, name="n")
            acknowledged.append(number)
        except GridError:
            pass

    try:
        running = [asyncio.create_task(put(number)) for number in range(20)]
        while len(acknowledged) < 5:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED, timeout=5)
            running = [task for task in running if not task.done()] or running
            if all(task.done() for task in running):
                break
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await asyncio.gather(*running)
        assert len(acknowledged) >= 5
        process = await _process(lab)
        for number in acknowledged:
            got = await client(lab).get(f"ada{number}", PASS, name="n")
            assert str(got.identity) == ADA
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await process.wait()
