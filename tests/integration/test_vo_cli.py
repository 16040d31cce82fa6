"""`grid vo`, `grid proxy init --voms` and sessions with attributes, against a running VO server."""

import asyncio
import json
from datetime import timedelta

import pytest
from support.grid import ORGANISATION, LabGrid

from agents.user_interface import application
from agents.user_interface.exits import ExitCode
from agents.vo.client import VoClient
from fabric import voms_files
from fabric.errors import Refused, Unauthenticated
from fabric.settings import Settings
from fabric.vos import described
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
        organisation = DistinguishedName.parse(ORGANISATION)
        voms_files.write(folder, described(Settings.from_dict(server)), organisation, lab.grid.ca.subject)
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


async def test_no_certificate_is_made_for_somebody_who_could_not_join(lab, grid, tmp_path):
    grid.operator()
    out = str(tmp_path / "ada")
    for group, words in (
        ("/cms/nowhere", "grid vo group add /cms/nowhere"),
        ("/cms/Role=boss", "grid vo role add boss"),
        ("/atlas", "cms has no group /atlas"),
    ):
        error = (await grid("user", "add", "Ada", "--group", group, "--out", out, code=ExitCode.NOT_FOUND))["error"]
        assert error["reason"] == "GROUP_UNKNOWN" and words in error["sentence"]
    assert not (tmp_path / "ada").exists()


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


# The HTTPS of VOMS, for servers that are not ours


async def test_attributes_of_any_voms_server(lab, grid, tmp_path):
    grid.operator()
    grid.log_in("ada")
    await grid("vo", "member", "add", ADA, "--group", "/cms/Role=production")
    vomses = grid.folder / "vomses"
    made = await grid("proxy", "init", "--voms", "cms:/cms/Role=production", "--vomses", str(vomses))
    assert made["voms"][0]["fqans"] == ["/cms/Role=production", "/cms"] and made["voms"][0]["verified"]
    assert [line["door"] for line in lab.audit("vo.CERN", "attributes.issued")] == ["https"]
    # a server that is down is followed by the next of that VO
    line = vomses.read_text()
    port = f'"{lab.port("vo.CERN", "http")}"'
    down = tmp_path / "vomses.d"
    down.mkdir()
    (down / "a").write_text("# first one that is down\n" + line.replace(port, '"1"'))
    (down / "b").write_text(line)
    assert (await grid("proxy", "init", "--voms", "cms", "--vomses", str(down)))["voms"][0]["verified"]
    # without a grid, by the usual variables; another name for the same VO
    grid.patch.setenv("GRIDFABRIC_STATE", str(tmp_path / "no-grid"))
    vomses.write_text(line.replace('"cms"', '"my-nick"', 1))
    grid.patch.setenv("VOMS_USERCONF", str(vomses))
    error = (await grid("proxy", "init", "--voms", "my-nick", code=ExitCode.FAILED))["error"]
    assert error["reason"] == "VOMS_REFUSED" and "/my-nick" in error["sentence"], (
        "the server says what it thinks of that"
    )
    assert (await grid("proxy", "init", "--voms", "cms"))["voms"][0]["verified"]


@pytest.mark.parametrize(
    ("change", "code", "reason", "words"),
    [
        (("", ""), ExitCode.FAILED, "VOMS_REFUSED", "is not a member of cms"),
        (("CN=vo/vo.CERN", "CN=vo/other"), ExitCode.FAILED, "HOST_NAME_MISMATCH", "as the vomses file says"),
        (("localhost", "127.0.0.2"), ExitCode.UNREACHABLE, "SERVER_UNREACHABLE", "cannot be reached"),
        (('"cms"', '"cms'), ExitCode.USAGE, "USAGE", "line 1 is not"),
        (("PORT", "99999"), ExitCode.USAGE, "USAGE", "line 1 is not"),
        (('"/C=XX', '"no name /C=XX'), ExitCode.USAGE, "USAGE", "cannot be used"),
        (("http", "rpc"), None, "", ""),
    ],
    ids=["stranger", "another name", "another host", "quotes", "port", "name", "grpc port"],
)
async def test_voms_servers_that_refuse_or_are_none(lab, grid, tmp_path, change, code, reason, words):
    grid.log_in("ada")
    vomses = tmp_path / "vomses"
    port = str(lab.port("vo.CERN", "rpc" if change[1] == "rpc" else "http"))
    old = change[0].replace("PORT", port)
    vomses.write_text((grid.folder / "vomses").read_text().replace(old, change[1]) if change[1] != "rpc" else
                      (grid.folder / "vomses").read_text().replace(str(lab.port("vo.CERN", "http")), port))  # fmt: skip
    if code is None:
        found = await asyncio.to_thread(
            application.run, ["proxy", "init", "--voms", "cms", "--vomses", str(vomses), "--json"]
        )
        assert found != ExitCode.OK and not grid.proxy.exists()
        return
    error = (await grid("proxy", "init", "--voms", "cms", "--vomses", str(vomses), code=code))["error"]
    assert error["reason"] == reason and words in error["sentence"]
    assert not grid.proxy.exists()


async def test_a_voms_server_without_our_trust_is_told_nothing(lab, grid):
    grid.log_in("ada")
    lab.revoke(lab.agents["vo.CERN"].context.credential)
    vomses = str(grid.folder / "vomses")
    error = (await grid("proxy", "init", "--voms", "cms", "--vomses", vomses, code=ExitCode.FAILED))["error"]
    assert error["reason"] == "CERTIFICATE_REVOKED"
    assert not lab.audit("vo.CERN", "attributes.refused"), "the request was not sent"


# Map files


async def fill(lab, name, people, vo="cms"):
    client = VoClient(await lab.channel("vo", name=name, credential=lab.operator()))
    for person in people:
        await client.add_member(f"{ORGANISATION}/OU=Users/CN={person}")
    return client


async def test_a_map_file_from_two_member_lists_one_of_which_goes_down(lab, grid, tmp_path):
    await lab.start("vo", name="vo.atlas", options={"vo": "atlas"})
    await fill(lab, "vo.CERN", ["ada", "bob"])
    atlas = await fill(lab, "vo.atlas", ["bob", "eve"])
    out = tmp_path / "grid-mapfile"
    one = f"localhost:{lab.port('vo.CERN', 'ldap')}/cms"
    two = f"ldap://localhost:{lab.port('vo.atlas', 'ldap')}/o=atlas=.atl"
    made = await grid("mkgridmap", "--from", one, "--from", two, "--out", str(out))
    base = f"{ORGANISATION}/OU=Users/CN="
    text = f'"{base}ada" .cms\n"{base}bob" .cms,.atl\n"{base}eve" .atl\n'
    assert out.read_text() == text and (made["people"], made["gained"]) == (3, 3)

    await atlas.remove_member(f"{base}eve")
    await lab.stop("vo.atlas")
    made = await grid("mkgridmap", "--from", one, "--from", two, "--out", str(out))
    down = made["lists"][1]
    assert out.read_text() == text and "no LDAP server answers" in down["problem"] and down["members"] == 2
    kept = tmp_path / "grid-mapfile.lists.json"
    kept.write_text("{damaged")
    error = (await grid("mkgridmap", "--from", one, "--from", two, "--out", str(out), code=ExitCode.UNREACHABLE))[
        "error"
    ]
    assert error["reason"] == "MEMBER_LIST_MISSING" and out.read_text() == text
    await lab.start("vo", name="vo.atlas", options={"vo": "atlas"})
    made = await grid("mkgridmap", "--from", one, "--from", two, "--out", str(out))
    assert made["lost"] == [f"{base}eve"]


async def test_a_map_file_that_would_shrink_is_held_with_the_names(lab, grid, tmp_path):
    people = [f"person {number}" for number in range(8)]
    client = await fill(lab, "vo.CERN", people)
    out = tmp_path / "grid-mapfile"
    arguments = ["mkgridmap", "--out", str(out), "--least", "3"]
    await grid(*arguments)
    before = out.read_text()
    for person in people[:4]:
        await client.remove_member(f"{ORGANISATION}/OU=Users/CN={person}")
    error = (await grid(*arguments, code=ExitCode.FAILED))["error"]
    assert error["reason"] == "MAP_SHRUNK" and out.read_text() == before
    assert "from 8 to 4 people" in error["sentence"] and "CN=person 3" in error["facts"]["names"]
    await grid(*arguments, "--confirm", "0" * 12, code=ExitCode.FAILED)
    made = await grid(*arguments, "--confirm", error["facts"]["digest"])
    assert (made["people"], len(made["lost"])) == (4, 4)


@pytest.mark.parametrize("source", ["cms", "host/cms", "host:0/cms", "host:99999/cms", "host:1/", "host:1/cms=root;"])
async def test_sources_that_are_none(lab, grid, source, tmp_path):
    error = (await grid("mkgridmap", "--from", source, "--out", str(tmp_path / "x"), code=ExitCode.USAGE))["error"]
    assert error["reason"] == "USAGE" and not (tmp_path / "x").exists()


async def test_an_agent_holds_a_shrunken_list_until_it_is_confirmed(lab):
    fabric = {"map_updater": True, "map_file": "", "map_refresh_s": 3600, "map_shrink_least": 3}
    people = [f"person {number}" for number in range(6)]
    client = await fill(lab, "vo.CERN", people)
    agent = await lab.start("storage", fabric=fabric)
    updater = agent.context.judge.update_now.__self__
    path = agent.context.state_dir / "grid-mapfile"
    await updater._update_shared(0)
    assert path.read_text().count("\n") == 6
    await client.remove_member(f"{ORGANISATION}/OU=Users/CN=person 5")
    await updater._update_shared(0)
    assert path.read_text().count("\n") == 5, "one person is a decision"
    for person in people[:4]:
        await client.remove_member(f"{ORGANISATION}/OU=Users/CN={person}")
    await updater._update_shared(0)
    updater._report()
    health = agent.health()
    assert path.read_text().count("\n") == 5 and health.state.value == "degraded"
    assert "shrank from 5 to 1" in health.detail and "CN=person 0" in health.detail
    (line,) = lab.audit("storage.CERN", "map.shrink_held")
    assert len(line["lost"]) == 4
    confirm = path.with_name("grid-mapfile.confirm")
    confirm.write_text("000000000000\n")
    await updater._update_shared(0)
    assert path.read_text().count("\n") == 5
    confirm.write_text(f"000000000000\n{line['digest']}\n")
    await updater._update_shared(0)
    updater._report()
    assert path.read_text().count("\n") == 1 and agent.health().state.value == "green"
    assert lab.audit("storage.CERN", "map.shrink_confirmed")


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
    async with asyncio.timeout(60):
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
