"""`grid vo`, `grid proxy init --voms` and sessions with attributes, against a running VO server."""

import asyncio
import json
from datetime import timedelta

import pytest
from support.grid import ORGANISATION, LabGrid

from agents.user_interface import application
from agents.user_interface.exits import ExitCode
from clusters import voms_files
from fabric.errors import Refused, Unauthenticated
from fabric.settings import Settings
from security import proxies, voms
from security.credentials import Credential
from security.names import DistinguishedName

ADA = f"{ORGANISATION}/OU=Users/CN=ada"
HOUR = timedelta(hours=1)
OPTIONS = {"groups": ["/cms/higgs"], "roles": ["VO-Admin", "production"]}


class Shell:
    """One user's shell. Commands run in threads, as the servers live in this test's event loop."""

    def __init__(self, lab, folder, monkeypatch, capsys):
        self.lab, self.folder, self.patch, self.capsys = lab, folder, monkeypatch, capsys
        folder.mkdir()
        server = lab.settings("vo.CERN")
        (folder / "endpoints.json").write_text(
            json.dumps(
                {
                    "grid": "test",
                    "vos": ["cms"],
                    "certificates": str(lab.certificates),
                    "endpoints": {
                        "vo": [{"name": "vo.CERN", "site": "CERN", "host": "localhost", **server["ports"]}],
                    },
                }
            )
        )
        voms_files.write(folder, voms_files.voms_servers(Settings.from_dict(server)), lab.grid.ca.subject)
        self.proxy = folder / "proxy.pem"
        for name, value in {
            "GRIDFABRIC_STATE": folder,
            "X509_CERT_DIR": lab.certificates,
            "X509_VOMS_DIR": folder / "vomsdir",
            "X509_USER_PROXY": self.proxy,
        }.items():
            monkeypatch.setenv(name, str(value))
        for name in ("X509_USER_CERT", "X509_USER_KEY", "GRIDFABRIC_VO", "GRIDFABRIC_ENDPOINTS"):
            monkeypatch.delenv(name, raising=False)

    def log_in(self, name):
        credential = self.lab.user_certificate(name)
        certificate, key = self.lab.grid.save_user(credential, self.folder / name)
        self.patch.setenv("X509_USER_CERT", str(certificate))
        self.patch.setenv("X509_USER_KEY", str(key))
        return credential

    def operator(self, yes=True):
        path = self.folder / "admin.pem"
        if yes:
            self.lab.operator().save(path)
        else:
            path.unlink()

    async def __call__(self, *arguments, code=ExitCode.OK):
        """The JSON that a command prints."""
        found = await asyncio.to_thread(application.run, [*arguments, "--json"])
        output = self.capsys.readouterr()
        assert found == code, output
        return json.loads(output.out)


@pytest.fixture
async def lab(tmp_path):
    async with LabGrid(tmp_path) as found:
        await found.start("vo", options=OPTIONS)
        yield found


@pytest.fixture
async def grid(lab, tmp_path, monkeypatch, capsys):
    return Shell(lab, tmp_path / "state", monkeypatch, capsys)


async def test_a_membership_from_request_to_attributes(lab, grid, tmp_path):
    grid.operator()
    grid.log_in("ada")
    policy = tmp_path / "aup.txt"
    policy.write_text("Physics only.")
    assert (await grid("vo", "aup", "publish", str(policy)))["version"] == 1
    await grid("proxy", "init")
    asked = await grid("vo", "request", "--email", "ada@example.org")
    assert (asked["state"], asked["good_standing"]) == ("REQUESTED", False)
    error = (await grid("proxy", "init", "--voms", "cms", code=ExitCode.FAILED))["error"]
    assert error["reason"] == "MEMBER_REQUESTED" and "no manager has approved" in error["sentence"]
    error = (await grid("vo", "member", "approve", ADA, code=ExitCode.FAILED))["error"]
    assert error["reason"] == "AUP_UNSIGNED"
    error = (await grid("vo", "aup", "sign", "--version", "7", code=ExitCode.FAILED))["error"]
    assert error["reason"] == "AUP_VERSION"
    assert (await grid("vo", "aup", "sign"))["aup_version"] == 1
    assert (await grid("vo", "member", "approve", ADA, "--for", "365d"))["good_standing"]
    await grid("vo", "member", "grant", ADA, "/cms/Role=production")
    await grid("vo", "member", "attribute", ADA, "nickname", "ada")

    made = await grid("proxy", "init", "--voms", "cms:/cms/Role=production")
    (entry,) = made["voms"]
    assert entry["fqans"] == ["/cms/Role=production", "/cms"] and entry["verified"], entry
    shown = await grid("proxy", "info", "--all")
    assert shown["voms"][0]["attributes"] == {"nickname": "ada"}
    assert [line["after"] for line in lab.audit("vo.CERN", "member.approved")] == ["APPROVED"]

    await grid("vo", "member", "suspend", ADA, "--reason", "stolen laptop")
    error = (await grid("proxy", "init", "--voms", "cms", code=ExitCode.FAILED))["error"]
    assert error["reason"] == "MEMBER_SUSPENDED" and "stolen laptop" in error["sentence"]
    assert (await grid("vo", "member", "show", code=ExitCode.FAILED))["state"] == "SUSPENDED"
    assert [m["state"] for m in (await grid("vo", "member", "ls"))["members"]] == ["SUSPENDED"]
    assert (await grid("vo", "member", "restore", ADA))["good_standing"]
    events = [line["event"] for line in lab.audit("vo.CERN") if line["event"].startswith("member.")]
    assert events == [
        "member.requested", "member.aup_signed", "member.approved", "member.granted", "member.attribute_set",
        "member.suspended", "member.restored",
    ]  # fmt: skip


async def test_groups_and_roles_exist_before_anybody_has_them(lab, grid):
    grid.operator()
    codes = {
        "GROUP_UNKNOWN": ExitCode.NOT_FOUND, "ROLE_UNKNOWN": ExitCode.NOT_FOUND, "NOT_A_MEMBER": ExitCode.NOT_FOUND,
        "FQAN_INVALID": ExitCode.USAGE, "GROUP_PERMANENT": ExitCode.FAILED,
    }  # fmt: skip
    for arguments, reason in (
        (("group", "add", "/cms/a/b"), "GROUP_UNKNOWN"),
        (("group", "add", "/atlas/a"), "FQAN_INVALID"),
        (("group", "add", "/cms/Role=x"), "FQAN_INVALID"),
        (("role", "add", "no/slash"), "FQAN_INVALID"),
        (("group", "rm", "/cms"), "GROUP_PERMANENT"),
        (("member", "add", ADA, "--group", "/cms/nowhere"), "GROUP_UNKNOWN"),
        (("member", "add", ADA, "--group", "/cms/Role=boss"), "ROLE_UNKNOWN"),
        (("member", "grant", ADA, "/cms"), "NOT_A_MEMBER"),
    ):
        assert (await grid("vo", *arguments, code=codes[reason]))["error"]["reason"] == reason
    await grid("vo", "group", "add", "/cms/higgs/deep")
    await grid("vo", "group", "add", "/cms/higgs/deep")
    await grid("vo", "role", "add", "pilot")
    await grid("vo", "member", "add", ADA, "--group", "/cms/higgs/deep/Role=pilot", "--group", "/cms/higgs")
    error = (await grid("vo", "member", "grant", ADA, "/cms/Role=boss", code=ExitCode.NOT_FOUND))["error"]
    assert error["reason"] == "ROLE_UNKNOWN"
    assert (await grid("vo", "group", "ls"))["groups"] == ["/cms", "/cms/higgs", "/cms/higgs/deep"]
    await grid("vo", "group", "rm", "/cms/higgs")
    found = await grid("vo", "member", "show", ADA)
    assert found["groups"] == [] and found["good_standing"]
    assert (await grid("vo", "group", "ls"))["groups"] == ["/cms"]


async def test_a_member_with_the_role_manages_the_vo_and_others_do_not(lab, grid):
    grid.operator()
    grid.log_in("ada")
    await grid("vo", "member", "add", ADA)
    await grid("vo", "member", "grant", ADA, "/cms/Role=VO-Admin")
    grid.operator(False)
    await grid("proxy", "init", "--voms", "cms")
    bob = f"{ORGANISATION}/OU=Users/CN=bob"
    error = (await grid("vo", "member", "add", bob, code=ExitCode.FAILED))["error"]
    assert error["reason"] == "ADMINISTRATOR_REQUIRED" and "--voms cms:/cms/Role=VO-Admin" in error["sentence"]
    await grid("proxy", "init", "--voms", "cms:/cms/Role=VO-Admin")
    assert (await grid("vo", "member", "add", bob))["subject"] == bob
    await grid("proxy", "init", "--voms", "cms:/cms/Role=VO-Admin", "--limited")
    error = (await grid("vo", "member", "remove", bob, code=ExitCode.FAILED))["error"]
    assert error["reason"] == "ADMINISTRATOR_REQUIRED"
    await grid("proxy", "init", "--voms", "cms:/cms/Role=VO-Admin")
    grid.operator()
    await grid("vo", "member", "withdraw", ADA, "/cms/Role=VO-Admin")
    grid.operator(False)
    error = (await grid("vo", "member", "remove", bob, code=ExitCode.FAILED))["error"]
    assert error["reason"] == "MANAGER_REQUIRED", "attributes outlive the role"


async def test_wrong_wishes_are_refused_and_nothing_is_written(lab, grid):
    grid.operator()
    grid.log_in("ada")
    for wish, reason, code in (
        ("atlas", "VO_UNKNOWN", ExitCode.NOT_FOUND),
        ("/cms", "USAGE", ExitCode.USAGE),
        ("cms:production", "USAGE", ExitCode.USAGE),
        ("cms:/atlas", "NOT_A_MEMBER", ExitCode.FAILED),
        ("cms", "NOT_A_MEMBER", ExitCode.FAILED),
    ):
        assert (await grid("proxy", "init", "--voms", wish, code=code))["error"]["reason"] == reason
    await grid("vo", "member", "add", ADA)
    error = (await grid("proxy", "init", "--voms", "cms:/atlas", code=ExitCode.FAILED))["error"]
    assert error["reason"] == "VO_UNKNOWN"
    error = (await grid("proxy", "init", "--voms", "cms:/cms/higgs", code=ExitCode.FAILED))["error"]
    assert error["reason"] == "FQAN_REFUSED"
    await lab.stop("vo.CERN")
    error = (await grid("proxy", "init", "--voms", "cms", code=ExitCode.UNREACHABLE))["error"]
    assert not grid.proxy.exists()


async def test_info_says_which_attributes_do_not_verify(lab, grid, monkeypatch):
    grid.operator()
    grid.log_in("ada")
    await grid("vo", "member", "add", ADA)
    await grid("proxy", "init", "--voms", "cms")
    monkeypatch.setenv("X509_VOMS_DIR", str(grid.folder / "vomsdir" / "cms"))
    shown = await grid("proxy", "info", "--all", code=ExitCode.FAILED)
    assert not shown["voms"][0]["verified"] and "no .lsc file of cms" in shown["voms"][0]["problem"]
    assert "voms" not in await grid("proxy", "info")
    bob = lab.user_certificate("bob")
    stolen = Credential.load(grid.proxy).certificate.extensions.get_extension_for_oid(voms.ATTRIBUTE_CERTIFICATES_OID)
    moved = proxies.create_proxy(bob, lifetime=HOUR, now=lab.clock.now(), extensions=[stolen.value])
    moved.save(grid.proxy)
    monkeypatch.setenv("X509_VOMS_DIR", str(grid.folder / "vomsdir"))
    shown = await grid("proxy", "info", "--all", code=ExitCode.FAILED)
    assert "given to another certificate" in shown["voms"][0]["problem"]


async def test_env_tells_voms_clients_where_to_look(lab, grid, tmp_path):
    shown = await grid("env", "--voms", str(tmp_path / "copy"))
    assert shown["X509_VOMS_DIR"] == str(grid.folder / "vomsdir")
    assert shown["VOMS_USERCONF"] == shown["X509_VOMSES"] == str(grid.folder / "vomses")
    server = DistinguishedName.parse(f"{ORGANISATION}/OU=CERN/CN=vo/vo.CERN")
    port = lab.port("vo.CERN", "http")
    assert (tmp_path / "copy" / "vomses").read_text() == f'"cms" "localhost" "{port}" "{server}" "cms"\n'
    chains = voms.VomsDirectory.load(tmp_path / "copy" / "vomsdir").chains
    assert (server, lab.grid.ca.subject) in chains["cms"]
    (grid.folder / "vomses").unlink()
    assert "X509_VOMS_DIR" not in await grid("env")
    error = (await grid("env", "--voms", str(tmp_path / "more"), code=ExitCode.NOT_FOUND))["error"]
    assert error["reason"] == "VOMS_FILES_MISSING"


# Sessions


async def attributed(lab, name="ada", *, holder=None, signer=None, vo="cms", fqans=("/cms",), now=None, **more):
    """A proxy of `name` with an attribute certificate that may be wrong."""
    user = lab.user_certificate(name)
    now = now or lab.clock.now()
    encoded = voms.create_attribute_certificate(
        signer or lab.agents["vo.CERN"].context.credential,
        (holder or user).certificate, vo=vo, uri="localhost:1", fqans=fqans, lifetime=HOUR, now=now,
    )  # fmt: skip
    if more.get("damage"):
        encoded = encoded.replace(*more["damage"])
    extension = voms.proxy_extension([encoded])
    return proxies.create_proxy(user, lifetime=HOUR, now=lab.clock.now(), extensions=[extension])


async def test_sessions_know_groups_and_roles_and_end_with_them(lab):
    await lab.start("storage")
    lab.user("ada")
    proxy = await attributed(lab, fqans=("/cms/higgs/Role=pilot", "/cms"), now=lab.clock.now() - HOUR / 2)
    below = proxies.create_proxy(proxy, lifetime=HOUR, now=lab.clock.now())
    await (await lab.channel("storage", credential=below)).ready()
    (session,) = lab.agents["storage.CERN"].server.sessions
    assert session.peer.fqans == ("/cms/higgs/Role=pilot", "/cms")
    assert session.expires_at < lab.clock.now() + HOUR * 0.6
    (line,) = lab.audit("storage.CERN", "session.opened")
    assert line["fqans"] == ["/cms/higgs/Role=pilot", "/cms"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("forged", "is not signed by"),
        ("expired", "it expired at"),
        ("moved", "it was given to another certificate"),
        ("user as server", "no .lsc file of cms names"),
        ("server of another kind", "no .lsc file of cms names"),
        ("unknown vo", "no .lsc file of atlas names"),
        ("garbage", "cannot be read"),
    ],
)
async def test_a_chain_with_a_bad_attribute_certificate_opens_no_session(lab, case, words):
    await lab.start("storage")
    lab.user("ada")
    changes = {
        "forged": {"damage": (b"/cms/Role=NULL", b"/cms/Role=root")},
        "expired": {"now": lab.clock.now() - 2 * HOUR},
        "moved": {"holder": lab.user_certificate("bob")},
        "user as server": {"signer": lab.user_certificate("bob")},
        "server of another kind": {"signer": lab.service("broker")},
        "unknown vo": {"vo": "atlas", "fqans": ("/atlas",)},
        "garbage": {"damage": (b"\x06", b"\x07")},
    }[case]
    channel = await lab.channel("storage", credential=await attributed(lab, **changes))
    with pytest.raises((Unauthenticated, Refused)) as caught:
        await channel.ready()
    assert caught.value.reason == "ATTRIBUTE_INVALID" and words in caught.value.sentence
    refused = [line for line in lab.audit("storage.CERN") if line.get("reason") == "ATTRIBUTE_INVALID"]
    assert refused and words in refused[-1]["sentence"], "the same sentence at both ends"
    assert len(lab.agents["storage.CERN"].server.sessions) == 0


async def test_a_revoked_vo_server_closes_the_sessions_that_it_spoke_for(lab):
    await lab.start("storage")
    lab.user("ada")
    channel = await lab.channel("storage", credential=await attributed(lab))
    await channel.ready()
    server = lab.agents["storage.CERN"].server
    lab.revoke(lab.agents["vo.CERN"].context.credential)
    async with asyncio.timeout(20):
        while len(server.sessions):  # noqa: ASYNC110 - closed by the agent's own watch
            await asyncio.sleep(0.02)


async def test_mapping_by_groups_in_the_order_of_the_rules(lab, tmp_path):
    rules = tmp_path / "groupmapfile"
    rules.write_text('"/cms/Role=production" .cmsprd\n"/cms/higgs/*" .higgs\n"/cms" .cms\n')
    await lab.start("storage", fabric={"mapping": "vo-groups", "group_map": str(rules)})
    lab.user("ada")
    for fqans in (("/cms", "/cms/Role=production"), ("/cms", "/cms/higgs"), ("/cms", "/cms/higgs/deep")):
        channel = await lab.channel("storage", credential=await attributed(lab, fqans=fqans))
        await channel.ready()
    accounts = [line["account"] for line in lab.audit("storage.CERN", "session.opened")]
    assert accounts == [".cmsprd", ".cms", ".higgs"]
    cases = (
        (await attributed(lab, fqans=("/cms/top",)), "has a rule at this site"),
        (lab.user("ada"), "came without groups of a VO"),
    )
    for credential, words in cases:
        with pytest.raises(Refused) as caught:
            await (await lab.channel("storage", credential=credential)).ready()
        assert caught.value.reason == "NOT_MAPPED" and words in caught.value.sentence
    # rules change; a damaged file leaves those in force
    rules.write_text('"/cms/top" .top\n')
    await asyncio.to_thread(lab.agents["storage.CERN"].context.judge.refresh)
    await (await lab.channel("storage", credential=await attributed(lab, fqans=("/cms/top",)))).ready()
    rules.write_text('"/cms/top" root\n')
    assert not lab.agents["storage.CERN"].context.judge.refresh()
    await (await lab.channel("storage", credential=await attributed(lab, fqans=("/cms/top",)))).ready()
