"""Jobs that read from and write to storage elements and the catalogue, with the owner's limited proxy."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import classad2
import pytest
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from gridfabric.information.v1 import information_pb2, information_pb2_grpc
from support.grid import LabGrid
from support.waiting import until

from agents.catalog import client as catalogue
from agents.gatekeeper import client
from agents.keystore import client as keystore
from agents.keystore.client import KeyStores, in_files
from agents.storage import client as storage
from agents.transfer.client import TransferClient
from fabric.ids import unique_id
from fabric.information import TreeCopy
from fabric.rpc.delegation import delegate
from fabric.settings import Endpoint
from security import sealing


class Site:
    """A CE with a worker, a close SE, a far SE, the catalogue and bookkeeping."""

    def __init__(self, lab: LabGrid) -> None:
        self.lab = lab
        self.alice = lab.user("alice")

    async def start(self, retry_s: float = 10.0) -> None:
        lab = self.lab
        for kind in ("storage", "catalog", "bookkeeping", "gatekeeper", "worker"):
            lab.plan(kind)
        await lab.start("storage")
        await lab.start("catalog")
        await lab.start("bookkeeping")
        await lab.start("gatekeeper", options={"heartbeat_s": 0.5})
        await lab.start("worker", options={"slots": 2, "staging_retry_s": retry_s})
        lab.plan("storage", site="RAL")  # agents of a site are not told of other sites' storage elements
        lab.plan("transfer")
        await lab.start("storage", site="RAL")
        self.channel = await lab.channel("gatekeeper", credential=self.alice)
        await delegate(self.channel, self.alice)

    async def run(self, script: str, **more: Any) -> tuple[str, pb.JobUpdate]:
        description = pb.JobDescription(
            executable="/bin/sh", arguments=["-c", script], std_output="out", output_sandbox=["out"], vo="cms", **more
        )
        job_id = f"https://localhost:9000/{unique_id()}"
        (outcome,) = await client.submit(self.channel, [pb.Job(job_id=job_id, attempt=1, description=description)])
        assert outcome.accepted, outcome
        async with asyncio.timeout(60):
            async for update in client.watch(self.channel):
                if update.job_id == job_id and update.state > pb.JOB_STATE_RUNNING:
                    return job_id, update
        raise AssertionError


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with LabGrid(tmp_path) as lab:
        yield Site(lab)


async def test_output_data_is_kept_registered_and_read_by_the_next_job(site: Site) -> None:
    await site.start()
    lfn = "/grid/cms/test/events.txt"
    _, update = await site.run(
        "seq 1 1000 > events.txt", output_data=[pb.DataOutput(file="events.txt", lfn=f"lfn:{lfn}")]
    )
    assert (update.state, update.reason) == (pb.JOB_STATE_DONE, ""), update
    channel = await site.lab.channel("catalog", credential=site.alice)
    (entry,), _ = await catalogue.lookup(channel, [lfn])
    assert entry.replicas[0].storage_element == f"localhost:{site.lab.port('storage.CERN')}"
    job_id, update = await site.run(
        'wc -l < events.txt; ls; cat "$GLITE_WMS_RB_BROKERINFO"',
        input_data=[f"lfn:{lfn}"],
        data_access_protocols=["https"],
    )
    assert update.state == pb.JOB_STATE_DONE, update
    listing, bracket, information = (await client.output_files(site.channel, job_id))["out"].partition(b"[")
    assert listing.split() == [b"1000", b"events.txt", b"out"]
    told = classad2.parseOne((bracket + information).decode())
    assert told["ComputingElement"]["name"].endswith("/jobmanager-fabric-long")
    assert [one["name"] for one in told["ComputingElement"]["CloseStorageElements"]] == [
        entry.replicas[0].storage_element
    ]
    assert {one["name"]: list(one["SFNs"]) for one in told["InputFNs"]} == {f"lfn:{lfn}": [entry.replicas[0].surl]}
    assert [list(told["DataAccessProtocol"]), told["VirtualOrganisation"]] == [["https"], "cms"]

    # copies = 2 at any storage element, of whatever jobs write there from now on
    await site.lab.start("transfer", options={"retry_first_s": 0.05})
    transfers = await site.lab.channel("transfer", credential=site.alice)
    await delegate(transfers, site.alice)
    await TransferClient(transfers).subscribe(unique_id(), "/grid/cms/test", "*", 2)
    lfn = "/grid/cms/test/run2/more.txt"
    far = f"localhost:{site.lab.port('storage.RAL')}"
    _, update = await site.run(
        "seq 1 10 > more.txt", output_data=[pb.DataOutput(file="more.txt", lfn=lfn, storage_element=far)]
    )
    assert update.state == pb.JOB_STATE_DONE, update

    async def at_both() -> bool:
        (entry,), _ = await catalogue.lookup(channel, [lfn])
        return {replica.storage_element for replica in entry.replicas} == {
            f"localhost:{site.lab.port(f'storage.{name}')}" for name in ("CERN", "RAL")
        }

    await until(at_both, "the copy of the job's output")


async def test_input_data_comes_from_the_far_replica_when_the_close_one_is_gone(site: Site) -> None:
    await site.start(retry_s=0.5)
    local = site.lab.directory / "input.dat"
    local.write_bytes(b"far away\n" * 200_000)
    far = await site.lab.channel("storage", site="RAL", credential=site.alice)
    kept = await storage.put_file(far, local, "cms")
    channel = await site.lab.channel("catalog", credential=site.alice)
    content = catalogue.Content(kept.size_bytes, kept.checksums.adler32, kept.checksums.sha256)
    guid = str(uuid.uuid4())
    await catalogue.register(channel, "/grid/cms/far.dat", guid, content, surl=kept.surl)
    gone = f"srm://localhost:{site.lab.port('storage.CERN')}/cms/{uuid.uuid4().hex}"
    await catalogue.add_replica(channel, "/grid/cms/far.dat", gone, kept.size_bytes, kept.checksums.adler32)
    job_id, update = await site.run("sha256sum far.dat", input_data=[f"guid:{guid.upper()}"])
    assert update.state == pb.JOB_STATE_DONE, update
    assert (await client.output_files(site.channel, job_id))["out"].split()[0].decode() == kept.checksums.sha256


async def test_encrypted_input_is_opened_for_whom_its_owner_lets_in_only(site: Site) -> None:
    lab = site.lab
    places = ("CERN", "CNAF", "RAL")
    for place in places:
        lab.plan("keystore", site=place)
    await site.start(retry_s=0.5)
    for place in places:
        await lab.start("keystore", site=place)

    def stores_of(user: Any) -> KeyStores:
        found = [Endpoint("keystore", s, "localhost", s, rpc=lab.port(f"keystore.{s}")) for s in places]
        return KeyStores(found, lambda host, port: lab.channels.get(host, port, user))

    surls: dict[str, str] = {}
    far = await lab.channel("storage", site="RAL", credential=site.alice)
    (lab.directory / "plain").write_bytes(b"patient 7\n")
    for owner in ("alice", "bob"):
        key, key_id = sealing.new_key(), owner.encode().ljust(sealing.KEY_ID_BYTES, b"0")
        await stores_of(lab.user(owner)).keep(key_id, key)
        sealed = lab.directory / f"{owner}.sealed"
        in_files(lab.directory / "plain", sealed, lambda a, b, key=key, key_id=key_id: sealing.seal(key, key_id, a, b))
        surls[owner] = (await storage.put_file(far, sealed, "cms")).surl
    name = surls["alice"].rpartition("/")[2]
    job_id, update = await site.run(f"cat {name}; stat -c %a {name}; ls -A", input_data=[surls["alice"]])
    assert update.state == pb.JOB_STATE_DONE, update
    assert (await client.output_files(site.channel, job_id))["out"].split()[:3] == [b"patient", b"7", b"600"]
    assert b".open" not in (await client.output_files(site.channel, job_id))["out"]
    used = [line for s in places for line in lab.audit(f"keystore.{s}", "keystore.used")]
    assert {line["peer"] for line in used} == {str(lab.user_certificate("alice").identity)}

    _, update = await site.run("true", input_data=[surls["bob"]])
    assert (update.state, update.reason) == (pb.JOB_STATE_FAILED, "INPUT_DATA_SEALED"), update
    assert "is encrypted and cannot be opened" in update.sentence and "grid data grant" in update.sentence
    await keystore.set_readers(
        await lab.channel("keystore", site="CERN", credential=lab.user("bob")),
        b"bob".ljust(sealing.KEY_ID_BYTES, b"0"),
        grant=["/cms"],
    )
    _, update = await site.run("true", input_data=[surls["bob"]])
    assert update.reason == "INPUT_DATA_SEALED", "one share of three opens nothing"
    for place in ("RAL", "CNAF"):
        await lab.stop(f"keystore.{place}")
    _, update = await site.run("true", input_data=[surls["alice"]])
    assert (update.reason, "KEYSTORES_AWAY" in update.sentence) == ("INPUT_DATA_UNAVAILABLE", False), update


async def test_failed_staging_has_a_reason_and_a_sentence(site: Site) -> None:
    await site.start(retry_s=0.3)
    _, update = await site.run("true", input_data=["lfn:/grid/cms/no/such/file"])
    assert (update.state, update.reason, update.started) == (pb.JOB_STATE_FAILED, "INPUT_DATA_UNKNOWN", False)
    assert "/grid/cms/no/such/file" in update.sentence
    job_id, update = await site.run("echo hi", output_data=[pb.DataOutput(file="x", lfn="/grid/cms/x")])
    assert (update.state, update.reason, update.started) == (pb.JOB_STATE_FAILED, "OUTPUT_DATA_MISSING", True)
    assert (await client.output_files(site.channel, job_id))["out"] == b"hi\n"
    _, update = await site.run("exit 4", output_data=[pb.DataOutput(file="x", lfn="/grid/cms/x")])
    assert (update.state, update.exit_code) == (pb.JOB_STATE_DONE, 4)
    await site.lab.stop("storage.CERN")
    _, update = await site.run("echo hi > x", output_data=[pb.DataOutput(file="x", lfn="/grid/cms/x")])
    assert (update.state, update.reason) == (pb.JOB_STATE_FAILED, "OUTPUT_DATA_FAILED")


async def test_a_storage_element_that_restarts_delays_a_job_only(site: Site) -> None:
    await site.start(retry_s=20)
    await site.lab.stop("storage.CERN")
    running = asyncio.create_task(site.run("echo hi > x", output_data=[pb.DataOutput(file="x", lfn="/grid/cms/y")]))
    await asyncio.sleep(0.5)  # let it meet the closed port
    await site.lab.start("storage", site="CERN")
    _, update = await running
    assert (update.state, update.reason) == (pb.JOB_STATE_DONE, ""), update


async def test_bookkeeping_hears_of_every_step(site: Site) -> None:
    from gridfabric.bookkeeping.v1 import bookkeeping_pb2, bookkeeping_pb2_grpc

    await site.start()
    job_id, _ = await site.run("exit 3")
    credential = site.lab.service("broker")
    stub = bookkeeping_pb2_grpc.BookkeepingStub(await site.lab.channel("bookkeeping", credential=credential))
    async with asyncio.timeout(60):
        while True:
            history = None
            try:
                history = await stub.History(bookkeeping_pb2.HistoryRequest(job_id=job_id))
            except Exception:
                await asyncio.sleep(0.05)
            if history is not None and len(history.events) == 3:
                break
            await asyncio.sleep(0.02)
    assert [event.type for event in history.events] == [
        bookkeeping_pb2.EVENT_TYPE_TRANSFERRED,
        bookkeeping_pb2.EVENT_TYPE_RUNNING,
        bookkeeping_pb2.EVENT_TYPE_DONE,
    ]
    fields = history.events[2].fields
    assert (fields["exit_code"], fields["worker"]) == ("3", "worker.CERN")
    assert fields["ce"] == f"localhost:{site.lab.port('gatekeeper.CERN')}/jobmanager-fabric-long"


async def test_a_refreshed_delegation_reaches_running_jobs(site: Site) -> None:
    await site.start()
    script = """
    before=$(sha256sum < $X509_USER_PROXY); echo ready
    while test "$(sha256sum < $X509_USER_PROXY)" = "$before"; do sleep 0.05; done
    ls -l $X509_USER_PROXY | cut -c1-10; grep -c 'BEGIN CERT' $X509_USER_PROXY
    """
    running = asyncio.create_task(site.run(script))
    root = site.lab.agents["worker.CERN"].agent.runner.root
    while not any(path.stat().st_size for path in root.glob("*/out")):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    newer = site.lab.user("alice", hours=20)
    await delegate(await site.lab.channel("gatekeeper", credential=newer), newer, lifetime=timedelta(hours=15))
    job_id, update = await running
    assert update.state == pb.JOB_STATE_DONE
    lines = (await client.output_files(site.channel, job_id))["out"].decode().split()
    assert lines[:2] == ["ready", "-rw-------"]
    assert len(site.lab.audit("gatekeeper.CERN", "proxy.granted")) == 1  # the renewal used the same key


async def test_the_ce_is_published_with_measured_numbers(tmp_path: Path) -> None:
    async with LabGrid(tmp_path) as lab:
        for kind in ("information", "storage", "gatekeeper", "worker"):
            lab.plan(kind)
        await lab.start("information")
        await lab.start("gatekeeper", options={"heartbeat_s": 0.5, "max_wall_s": 7200})
        await lab.start("worker", options={"slots": 3})
        gatekeeper = lab.agents["gatekeeper.CERN"]
        ce = f"localhost:{gatekeeper.port}/jobmanager-fabric-long"

        async def found(condition: Any) -> dict[str, tuple[str, ...]]:
            stub = information_pb2_grpc.InformationStub(
                await lab.channel("information", credential=lab.service("broker"))
            )
            copy = TreeCopy()
            async with asyncio.timeout(60):
                async for change in stub.Subscribe(information_pb2.SubscribeRequest()):
                    copy.apply(change)
                    for entry in copy.entries.values():
                        values = {name.lower(): said for name, said in entry.attributes.items()}
                        if condition(values):
                            return values
            raise AssertionError

        values = await found(lambda v: v.get("glueceuniqueid") == (ce,) and v.get("gluecestatefreejobslots") == ("3",))
        assert values["glueceinfototalcpus"] == ("3",)
        assert values["gluecepolicymaxwallclocktime"] == ("120",)
        assert values["glueceaccesscontrolbaserule"] == ("VO:cms",)
        storage_id = f"localhost:{lab.port('storage.CERN')}"
        await found(lambda v: v.get("gluecesebindseuniqueid") == (storage_id,))
        await lab.stop("worker.CERN")
        await found(lambda v: v.get("glueceuniqueid") == (ce,) and v.get("gluecestatefreejobslots") == ("0",))
