"""The VOMS server of the field, asked by its own client; what it gives is worth here what it should be.

Debian's `voms` daemon over a MariaDB, `voms-proxy-init`, and an agent of ours that believes the server by its `.lsc`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from gridfabric.storage.v1 import storage_pb2, storage_pb2_grpc
from support import vomsd
from support.grid import ORGANISATION, LabGrid
from support.toy_agent import ToyAgent
from support.voms_desk import Desk

from fabric.clock import ManualClock
from fabric.errors import Unauthenticated
from fabric.voms_servers import VOMSDIR
from security.credentials import Credential
from security.names import DistinguishedName
from security.proxies import create_proxy
from security.voms import ATTRIBUTE_CERTIFICATES_OID, lsc_text

pytestmark = pytest.mark.skipif(bool(vomsd.MISSING), reason=f"not installed: {vomsd.MISSING}")

ADA, BOB, RITA = (f"{ORGANISATION}/OU=Users/CN={name}" for name in ("ada", "bob", "rita"))
EVE = "/C=XX/O=Elsewhere/CN=eve"
PILOT = "/cms/higgs/Role=pilot"
MEMBERS = {ADA: ["/cms", "/cms/higgs", PILOT], BOB: [], RITA: ["/cms"], EVE: ["/cms"]}


class Field:
    """A user's machine, the server of the VO cms, and an agent of ours."""

    def __init__(self, lab: LabGrid, clock: ManualClock, desk: Desk, server: Credential) -> None:
        self.lab, self.clock, self.desk, self.server = lab, clock, desk, server

    async def fqans(self, proxy: Credential | None = None) -> tuple[str, ...]:
        """What our agent knows of whom this proxy is from: the one that voms-proxy-init wrote, or another."""
        proxy = proxy or Credential.load(self.desk.proxy)
        stub = storage_pb2_grpc.StorageStub(await self.lab.channel("storage", credential=proxy))
        await stub.Stat(storage_pb2.StatRequest())
        toy = self.lab.agents["storage.CERN"].agent
        assert isinstance(toy, ToyAgent)
        return toy.storage.peers[-1].fqans

    async def refused(self, reason: str, words: str, proxy: Credential | None = None) -> None:
        """The agent lets nobody in with it, and says why at both ends."""
        with pytest.raises(Unauthenticated) as caught:
            await self.fqans(proxy)
        assert caught.value.reason == reason and words in caught.value.sentence, caught.value
        line = self.lab.audit("storage.CERN", "call.refused")[-1]
        assert (line["reason"], line["sentence"]) == (reason, caught.value.sentence)

    def carried(self) -> bytes:
        """The extension with the attribute certificate in the user's proxy."""
        oid = ATTRIBUTE_CERTIFICATES_OID
        value = Credential.load(self.desk.proxy).certificate.extensions.get_extension_for_oid(oid).value
        assert isinstance(value, x509.UnrecognizedExtension)
        return value.value

    def wrapped(self, user: Credential, extension: bytes) -> Credential:
        """A proxy of this user around that extension, as anybody can make one."""
        carried = x509.UnrecognizedExtension(ATTRIBUTE_CERTIFICATES_OID, extension)
        return create_proxy(user, lifetime=timedelta(hours=1), now=self.clock.now(), extensions=[carried])


@pytest.fixture
async def field(tmp_path: Path) -> AsyncIterator[Field]:
    clock = ManualClock(datetime.now(UTC))
    async with LabGrid(tmp_path, key_type="rsa-2048", clock=clock) as lab:
        host = lab.grid.host("localhost", subject="localhost")
        with vomsd.Vomsd(lab.grid, host, "cms", MEMBERS) as server:
            desk = Desk(lab, tmp_path / "desk", host.subject, server.port)
            desk.vomsdir.rename(lab.certificates.parent / VOMSDIR)
            desk.vomsdir = lab.certificates.parent / VOMSDIR
            for name in ("ada", "rita"):
                lab.user(name)
            await lab.start("storage", builder=ToyAgent)
            yield Field(lab, clock, desk, host)


async def test_a_member_is_known_by_the_groups_and_roles_of_the_field(field: Field) -> None:
    ada = field.desk.log_in("ada")
    told = await field.desk.init("cms")
    assert told.startswith("0 "), told
    assert await field.fqans() == ("/cms", "/cms/higgs")
    assert (await field.desk.init(f"cms:{PILOT}")).startswith("0 ")
    assert await field.fqans() == (PILOT, "/cms/higgs", "/cms")
    (found,) = field.desk.ours()
    assert (found.vo, str(found.issuer)) == ("cms", f"{ORGANISATION}/CN=localhost")

    # Delegated further, it still counts; around another person's proxy or with other groups, it counts for nobody.
    assert await field.fqans(field.lab.grid.proxy(Credential.load(field.desk.proxy))) == (PILOT, "/cms/higgs", "/cms")
    carried = field.carried()
    rita = field.desk.log_in("rita")
    await field.refused("ATTRIBUTE_INVALID", "it was given to another certificate", field.wrapped(rita, carried))
    forged = carried.replace(b"/cms/higgs", b"/cms/admin")
    await field.refused("ATTRIBUTE_INVALID", "it is not signed by", field.wrapped(ada, forged))
    await field.refused("ATTRIBUTE_INVALID", "cannot be read", field.wrapped(ada, carried[:-1]))


async def test_its_word_ends_when_it_says(field: Field) -> None:
    field.desk.log_in("ada")
    told = await field.desk.init("cms", "-vomslife", "1:00", "-valid", "3:00")
    assert told.startswith("0 "), told
    assert await field.fqans() == ("/cms", "/cms/higgs")
    field.clock.advance(3700)
    await field.refused("ATTRIBUTE_INVALID", "it expired at")


async def test_it_speaks_only_for_the_vo_whose_lsc_names_it(field: Field) -> None:
    field.desk.log_in("ada")
    assert (await field.desk.init("cms")).startswith("0 ")
    (field.desk.vomsdir / "cms").rename(field.desk.vomsdir / "atlas")
    field.lab.agents["storage.CERN"].context.voms.refresh()
    await field.refused("ATTRIBUTE_INVALID", "no .lsc file of cms names")
    elsewhere = DistinguishedName.parse(f"{ORGANISATION}/CN=elsewhere")
    (field.desk.vomsdir / "cms").mkdir()
    (field.desk.vomsdir / "cms" / "localhost.lsc").write_text(lsc_text([elsewhere, field.lab.grid.ca.subject]))
    field.lab.agents["storage.CERN"].context.voms.refresh()
    await field.refused("ATTRIBUTE_INVALID", "no .lsc file of cms names")


async def test_it_refuses_as_ours_does(field: Field) -> None:
    field.desk.log_in("bob")
    told = await field.desk.init("cms")
    assert told.startswith("1 ") and "currently suspended" in told, told
    field.desk.log_in("ada")
    told = await field.desk.init("cms:/cms/top")
    assert told.startswith("1 ") and "Unable to satisfy" in told, told


async def test_voms_server_gives_attributes_to_the_revoked_and_to_names_outside_the_namespace(field: Field) -> None:
    """It reads neither revocation lists nor signing policies. Here they open nothing."""
    rita = field.desk.log_in("rita")
    field.lab.revoke(rita)
    field.lab.agents["storage.CERN"].context.trust.refresh()
    told = await field.desk.init("cms")
    assert '"cms" Done' in told, told
    await field.refused("CERTIFICATE_REVOKED", "was revoked")
    eve = field.lab.grid.outside_namespace_user()
    field.desk.user = field.lab.grid.save_user(eve, field.desk.folder / "eve")
    told = await field.desk.init("cms")
    assert '"cms" Done' in told, told
    await field.refused("NAMESPACE_VIOLATION", "outside its signing policy", field.lab.grid.proxy(eve))


async def test_a_revoked_server_speaks_for_nobody(field: Field) -> None:
    field.desk.log_in("ada")
    assert (await field.desk.init("cms")).startswith("0 ")
    assert await field.fqans() == ("/cms", "/cms/higgs")
    field.lab.revoke(field.server)
    field.lab.agents["storage.CERN"].context.trust.refresh()
    again = field.lab.grid.proxy(Credential.load(field.desk.proxy))
    await field.refused("CERTIFICATE_REVOKED", "CN=localhost", again)
