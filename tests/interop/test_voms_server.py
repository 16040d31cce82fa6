"""Our VO server and the C client of VOMS as Debian ships it: what it asks, what it gets, what it says of a refusal."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta

import pytest
from support.grid import ORGANISATION, LabGrid
from support.voms_desk import Desk

from agents.vo.client import VoClient
from security import voms
from security.credentials import Credential
from security.errors import SecurityError

pytestmark = pytest.mark.skipif(shutil.which("voms-proxy-init") is None, reason="voms-clients is not installed")

PILOT, PRODUCTION = "/cms/higgs/Role=pilot", "/cms/Role=production"
OPTIONS = {"groups": ["/cms/higgs", "/cms/top"], "roles": ["VO-Admin", "production", "pilot"]}


@pytest.fixture
async def lab(tmp_path):
    async with LabGrid(tmp_path, key_type="rsa-2048") as found:
        await found.start("vo", options=OPTIONS)
        yield found


@pytest.fixture
async def desk(lab, tmp_path):
    return Desk(lab, tmp_path / "desk", lab.service("vo", "vo.CERN").subject, lab.port("vo.CERN", "http"))


async def manager(lab: LabGrid) -> VoClient:
    return VoClient(await lab.channel("vo", credential=lab.operator()))


async def test_a_member_gets_all_groups_and_no_role(lab, desk):
    ada = desk.log_in("ada")
    vo = await manager(lab)
    await vo.add_member(str(ada.subject), groups=["/cms/higgs", PRODUCTION])
    await vo.set_attribute(str(ada.subject), "nickname", "ada")
    told = await desk.init("cms")  # it verifies what it got: signature, .lsc, signer's chain, lists, holder, times
    assert told.startswith("0 "), told
    (found,) = desk.ours()
    assert found.fqans == ("/cms", "/cms/higgs")
    assert [(a.name, a.value) for a in found.attributes] == [("nickname", "ada")]
    told = await desk.run("voms-proxy-info", "-all")
    assert told.startswith("0 "), told
    for line in (
        "VO        : cms",
        f"subject   : {ada.subject}",
        "attribute : /cms/Role=NULL/Capability=NULL",
        "attribute : /cms/higgs/Role=NULL/Capability=NULL",
        "attribute : nickname = ada (cms)",
        f"uri       : localhost:{lab.port('vo.CERN', 'http')}",
    ):
        assert line in told, (line, told)
    told = await desk.run(
        "openssl", "verify", "-allow_proxy_certs", "-crl_check_all", "-CApath", str(lab.certificates),
        "-untrusted", str(desk.proxy), str(desk.proxy),
    )  # fmt: skip
    assert told.startswith("0 "), told
    (line,) = lab.audit("vo.CERN", "attributes.issued")
    assert (line["peer"], line["serial"], line["door"]) == (str(ada.subject), f"{found.serial:X}", "https")


async def test_roles_only_when_asked_for_and_first(lab, desk):
    ada = desk.log_in("ada")
    await (await manager(lab)).add_member(str(ada.subject), groups=["/cms/top", PILOT, PRODUCTION])
    assert (await desk.init(f"cms:{PRODUCTION}")).startswith("0 ")
    assert desk.ours()[0].fqans == (PRODUCTION, "/cms", "/cms/higgs", "/cms/top")
    assert (await desk.init("cms:/cms/top", "-order", "/cms/higgs")).startswith("0 ")
    assert desk.ours()[0].fqans == ("/cms/higgs", "/cms/top", "/cms")
    assert (await desk.init(f"cms:{PILOT}", "-order", PILOT)).startswith("0 ")
    assert desk.ours()[0].fqans == (PILOT, "/cms", "/cms/higgs", "/cms/top")
    told = await desk.run("voms-proxy-init", "-vomses", str(desk.vomses), "-voms", "cms", "-list")
    assert told.startswith("0 ") and f"{PILOT}/Capability=NULL" in told, told


async def test_for_one_host_alone(lab, desk):
    ada = desk.log_in("ada")
    await (await manager(lab)).add_member(str(ada.subject))
    told = await desk.init("cms", "-target", "ce.example.org")
    (entry,) = voms.attribute_certificates(Credential.load(desk.proxy).certificate)
    assert entry.targets == ("ce.example.org",), told
    with pytest.raises(SecurityError) as caught:
        desk.ours()
    assert "it is only for ce.example.org" in caught.value.sentence


async def test_a_wish_for_a_longer_life_is_cut_with_a_warning(lab, desk):
    ada = desk.log_in("ada")
    await (await manager(lab)).add_member(str(ada.subject))
    told = await desk.init("cms", "-vomslife", "100:00", "-valid", "100:00")
    assert told.startswith("0 ") and "shortened to 86400 seconds" in told, told
    assert desk.ours()[0].not_after <= datetime.now(UTC) + timedelta(hours=24)


async def test_with_an_existing_proxy_of_any_tool(lab, desk):
    """-noregen: the client authenticates with a proxy instead of the certificate, here one without attributes."""
    ada = desk.log_in("ada")
    await (await manager(lab)).add_member(str(ada.subject), groups=[PRODUCTION])
    assert (await desk.run("voms-proxy-init", "-out", str(desk.proxy))).startswith("0 ")
    second = desk.folder / "second.pem"
    told = await desk.run(
        "voms-proxy-init", "-vomses", str(desk.vomses), "-voms", f"cms:{PRODUCTION}", "-noregen", "-valid", "1:00",
        "-out", str(second),
    )  # fmt: skip
    assert '"cms" Done' in told, told  # what it then writes lacks a chain, and it refuses its own file
    (line,) = lab.audit("vo.CERN", "attributes.issued")
    assert line["fqans"] == [PRODUCTION, "/cms"] and line["leaf"].startswith(f"{ada.subject}/CN="), line


async def refused(lab: LabGrid, desk: Desk, request: str, reason: str, words: str) -> None:
    """The C client shows our sentence, and the audit log has the same."""
    told = await desk.init(request)
    assert told.startswith("1 "), told
    assert words in " ".join(told.split()), told
    lines = lab.audit("vo.CERN", "attributes.refused")
    assert lines and lines[-1]["reason"] == reason and words in lines[-1]["sentence"], lines
    assert not desk.proxy.exists() and not lab.audit("vo.CERN", "attributes.issued")


async def test_a_stranger(lab, desk):
    eve = desk.log_in("eve")
    await refused(lab, desk, "cms", "NOT_A_MEMBER", f"{eve.subject} is not a member of cms; ask to become one")


async def test_another_group_or_role(lab, desk):
    ada = desk.log_in("ada")
    await (await manager(lab)).add_member(str(ada.subject), groups=["/cms/top"])
    await refused(lab, desk, "cms:/cms/higgs", "FQAN_REFUSED", "is not in the group /cms/higgs")
    await refused(lab, desk, f"cms:{PILOT}", "FQAN_REFUSED", "does not hold the role pilot in /cms/higgs")


async def test_the_server_of_another_vo(lab, desk):
    ada = desk.log_in("ada")
    await (await manager(lab)).add_member(str(ada.subject))
    desk.vomses.write_text(desk.vomses.read_text().replace('"cms"', '"atlas"'))
    await refused(lab, desk, "atlas", "VO_UNKNOWN", "speaks for cms and was asked for '/atlas'")


async def test_every_state_of_a_membership_has_its_sentence(lab, desk):
    ada = desk.log_in("ada")
    subject, vo = str(ada.subject), await manager(lab)
    me = VoClient(await lab.channel("vo", credential=ada))
    await vo.publish_aup("Physics only.")
    await me.request_membership("Ada")
    await refused(lab, desk, "cms", "MEMBER_REQUESTED", "no manager has approved it yet")
    await me.sign_aup(1)
    await vo.approve(subject)
    await vo.publish_aup("Physics only, really.")
    await refused(lab, desk, "cms", "AUP_UNSIGNED", "acceptable use policy of version 2 and")
    await me.sign_aup(2)
    await vo.suspend(subject, "key on a public web page")
    await refused(lab, desk, "cms", "MEMBER_SUSPENDED", "is suspended from cms: key on a public web page")
    await vo.restore(subject)
    assert (await desk.init("cms")).startswith("0 ")


async def test_a_revoked_user_gets_nothing(lab, desk):
    """voms-server looks at no revocation list and gave attributes to revoked users."""
    ada = desk.log_in("ada")
    await (await manager(lab)).add_member(str(ada.subject))
    lab.revoke(ada)
    lab.agents["vo.CERN"].context.trust.refresh()
    await refused(lab, desk, "cms", "CERTIFICATE_REVOKED", "was revoked")


async def test_a_name_outside_the_authoritys_namespace_gets_nothing(lab, desk):
    """voms-server looks at no signing policy."""
    eve = lab.grid.outside_namespace_user()
    desk.user = lab.grid.save_user(eve, desk.folder / "eve")
    await (await manager(lab)).add_member(str(eve.subject))
    await refused(lab, desk, "cms", "NAMESPACE_VIOLATION", "outside its signing policy")


async def test_a_banned_user_gets_nothing(lab, desk):
    ada = desk.log_in("ada")
    await (await manager(lab)).add_member(str(ada.subject))
    with lab.ban_file.open("a") as file:
        file.write(f'"{ada.subject}"\n')
    lab.agents["vo.CERN"].context.judge.refresh()
    await refused(lab, desk, "cms", "BANNED", "ban")


async def test_expired_and_unknown_certificates_get_nothing(lab, desk):
    subject = f"{ORGANISATION}/OU=Users/CN=ada"
    await (await manager(lab)).add_member(subject)
    for credential, reason, words in (
        (lab.grid.expired_user(subject), "CERTIFICATE_EXPIRED", "expired at"),
        (lab.grid.unknown_ca_user("ada"), "UNKNOWN_CA", "authority"),
    ):
        desk.user = lab.grid.save_user(credential, desk.folder / reason)
        told = await desk.run(
            "openssl", "s_client", "-quiet", "-connect", f"localhost:{lab.port('vo.CERN', 'http')}",
            "-cert", str(desk.user[0]), "-key", str(desk.user[1]), stdin=b"GET /generate-ac?fqans=/cms HTTP/1.0\n\n",
        )  # fmt: skip
        assert "HTTP/1.1 403" in told and words in told, told
        assert lab.audit("vo.CERN", "attributes.refused")[-1]["reason"] == reason


async def test_without_a_certificate_there_is_a_sentence_and_no_alert(lab, desk):
    told = await desk.run(
        "openssl", "s_client", "-quiet", "-connect", f"localhost:{lab.port('vo.CERN', 'http')}",
        stdin=b"GET /generate-ac?fqans=/cms HTTP/1.0\n\n",
    )  # fmt: skip
    assert "HTTP/1.1 403" in told and "was asked without a certificate" in told, told


async def test_no_session_is_resumed(lab, desk):
    """A resumed session brings no chain that could be judged."""
    ada = desk.log_in("ada")
    told = await desk.run(
        "openssl", "s_client", "-reconnect", "-no_ign_eof", "-tls1_2", "-connect",
        f"localhost:{lab.port('vo.CERN', 'http')}", "-cert", str(desk.user[0]), "-key", str(desk.user[1]), stdin=b"",
    )  # fmt: skip
    assert "Reused" not in told and told.count("New, TLSv1.2") >= 2, told
    del ada
