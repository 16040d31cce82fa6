import asyncio

import pytest
from support.grid import ORGANISATION, LabGrid
from support.waiting import until

from agents.vo.client import VoClient
from agents.vo.model import checked_member
from fabric.errors import Exhausted, InvalidRequest, Refused, Unavailable
from fabric.ldap.client import LdapClient
from fabric.ldap.filter_text import parse_filter
from fabric.ldap.server import LdapServer
from fabric.ldap.tree import Scope

ADA = f"{ORGANISATION}/OU=Users/CN=Ada Lovelace"


@pytest.fixture
async def lab(tmp_path):
    async with LabGrid(tmp_path) as found:
        yield found


async def manager(lab: LabGrid) -> VoClient:
    return VoClient(await lab.channel("vo", credential=lab.operator()))


async def in_directory(lab: LabGrid, text: str = "(objectClass=gridMember)") -> list:
    async with await LdapClient.connect("127.0.0.1", lab.port("vo.CERN", "ldap")) as client:
        return await client.search("o=cms", parse_filter(text), attributes=("subject", "cn", "mail"))


async def test_members_come_and_go_in_both_lists(lab):
    await lab.start("vo", options={"groups": ["/cms/production"]})
    vo = await manager(lab)
    await vo.add_member(ADA, "Ada Lovelace", "ada@example.org", ["/cms/production"])
    await vo.add_member(ADA, "Ada Lovelace", "ada@example.org", ["/cms/production"])
    (member,) = await vo.list_members()
    assert (member.subject, member.email, list(member.groups)) == (ADA, "ada@example.org", ["/cms/production"])
    (entry,) = await in_directory(lab)
    assert (entry.first("subject"), entry.first("cn"), entry.first("mail")) == (ADA, "Ada Lovelace", "ada@example.org")
    await vo.remove_member(ADA)
    await vo.remove_member(ADA)
    assert await vo.list_members() == [] and await in_directory(lab) == []


async def test_members_survive_a_restart(lab):
    await lab.start("vo")
    await (await manager(lab)).add_member(ADA)
    await lab.stop("vo.CERN")
    await lab.start("vo")
    (entry,) = await in_directory(lab, f"(subject={ADA})")
    assert entry.first("cn") == "Ada Lovelace"
    first = (await (await manager(lab)).list_members())[0].added_at_us
    await (await manager(lab)).add_member(ADA, email="new@example.org")
    (again,) = await (await manager(lab)).list_members()
    assert (again.added_at_us, again.email) == (first, "new@example.org")


async def test_only_managers_change_the_list_and_strangers_may_read_it(lab):
    await lab.start("vo")
    for who in (lab.user("bob", vo=None), lab.service("broker")):
        vo = VoClient(await lab.channel("vo", credential=who))
        assert await vo.list_members() == []
        for call in (vo.add_member(ADA), vo.remove_member(ADA)):
            with pytest.raises(Refused) as caught:
                await call
            assert caught.value.reason == "ADMINISTRATOR_REQUIRED"


async def test_long_lists_come_in_pages(lab):
    await lab.start("vo", options={"page_size": 3})
    vo = await manager(lab)
    names = [f"{ORGANISATION}/OU=Users/CN=member {number}" for number in range(7)]
    for name in names:
        await vo.add_member(name)
    assert [member.subject for member in await vo.list_members()] == names


async def test_a_full_vo_says_so(lab):
    await lab.start("vo", options={"max_members": 1})
    vo = await manager(lab)
    await vo.add_member(ADA)
    await vo.add_member(ADA)
    with pytest.raises(Exhausted, match="VO has its 1 members"):
        await vo.add_member(f"{ORGANISATION}/OU=Users/CN=Bob")


@pytest.mark.parametrize(
    ("subject", "name", "email", "groups"),
    [
        ("Ada", "", "", ()),
        ("", "", "", ()),
        (ADA, "", "not an address", ()),
        (ADA, "", "", ("/atlas/production",)),
        (ADA, "", "", ("cms",)),
        (ADA, "bell\x07", "", ()),
        (ADA, "", "", ("/cms",) * 101),
    ],
)
def test_malformed_members_are_refused(subject, name, email, groups):
    with pytest.raises(InvalidRequest) as caught:
        checked_member("cms", subject, name, email, groups, 0)
    assert caught.value.reason == "MEMBER_INVALID"


async def test_the_vo_must_be_named_where_there_are_several(tmp_path):
    async with LabGrid(tmp_path, vos=("cms", "atlas")) as lab:
        with pytest.raises(InvalidRequest, match="'vo' is missing"):
            await lab.start("vo")
        await lab.start("vo", options={"vo": "atlas"})


async def test_the_list_has_a_version_that_every_change_moves(lab):
    async def version() -> tuple[str, ...] | None:
        async with await LdapClient.connect("127.0.0.1", lab.port("vo.CERN", "ldap")) as client:
            (top,) = await client.search("o=cms", scope=Scope.BASE, attributes=("contextCSN",))
            return top.get("contextcsn")

    await lab.start("vo")
    vo = await manager(lab)
    seen = [await version()]
    assert await version() == seen[0]
    await vo.add_member(ADA)
    seen.append(await version())
    await vo.remove_member(ADA)
    seen.append(await version())
    await lab.stop("vo.CERN")
    await lab.start("vo")
    seen.append(await version())
    assert None not in seen and len(set(seen)) == 4


async def test_map_files_follow_the_list_and_ask_for_it_only_when_it_changed(lab):
    await lab.start("vo")
    agent = await lab.start(
        "storage", fabric={"map_updater": True, "map_file": "", "map_refresh_s": 0.02, "trust_poll_s": 0.02}
    )
    path = agent.context.state_dir / "grid-mapfile"

    async def becomes(text: str) -> None:
        async with asyncio.timeout(60):
            while not path.exists() or path.read_text("utf-8") != text:  # noqa: ASYNC110 - the file is written by a thread
                await asyncio.sleep(0.02)

    vo = await manager(lab)
    both = f'"{ADA}" .cms\n"{ADA} Augusta" .cms\n'
    await vo.add_member(ADA)
    await vo.add_member(f"{ADA} Augusta")
    await becomes(both)
    server = next(c for c in lab.agents["vo.CERN"].context._closables if isinstance(c, LdapServer))
    connections, before = server.stats.connections, server.stats.searches
    sent = server.stats.entries_sent
    async with asyncio.timeout(60):
        while server.stats.searches < before + 20:  # noqa: ASYNC110 - a counter of the server
            await asyncio.sleep(0.02)
    assert server.stats.connections == connections, "one connection is kept"
    assert server.stats.entries_sent - sent <= server.stats.searches - before, "the list itself is not sent again"

    path.write_text("", "utf-8")
    await becomes(both)
    await lab.stop("vo.CERN")
    await lab.start("vo")
    await (await manager(lab)).remove_member(ADA)
    await becomes(f'"{ADA} Augusta" .cms\n')


async def test_agents_of_one_process_ask_once(lab):
    await lab.start("vo")
    vo = await manager(lab)
    await vo.add_member(ADA)
    fabric = {"map_updater": True, "map_file": "", "map_refresh_s": 3600}
    agents = [await lab.start("storage", name=f"storage{n}.CERN", fabric=fabric) for n in range(3)]
    paths = [agent.context.state_dir / "grid-mapfile" for agent in agents]
    updaters = [agent.context.judge.update_now.__self__ for agent in agents]
    server = next(c for c in lab.agents["vo.CERN"].context._closables if isinstance(c, LdapServer))

    async def look(max_age_s: float) -> list[str]:
        await asyncio.gather(*(updater._update_shared(max_age_s) for updater in updaters))
        return [path.read_text("utf-8") for path in paths]

    assert await look(0) == [f'"{ADA}" .cms\n'] * 3
    searches, connections = server.stats.searches, server.stats.connections
    assert await look(3600) == [f'"{ADA}" .cms\n'] * 3 and server.stats.searches == searches
    await vo.remove_member(ADA)
    assert await look(0) == [""] * 3
    assert server.stats.searches == searches + 2, "the version, and the list that it is of, once for all"
    await lab.stop("storage0.CERN")
    await vo.add_member(ADA)
    await asyncio.gather(*(updater._update_shared(0) for updater in updaters[1:]))
    assert [path.read_text("utf-8") for path in paths] == ["", *[f'"{ADA}" .cms\n'] * 2]
    assert server.stats.connections == connections, "who stops takes nothing from the others"


async def test_before_the_first_member_list_nobody_is_a_stranger(lab):
    lab.plan("vo")
    agent = await lab.start("storage", fabric={"map_updater": True, "map_file": "", "map_refresh_s": 0.05})
    ada = lab.user("ada", vo=None)
    with pytest.raises(Unavailable) as caught:
        await (await lab.channel("storage", credential=ada)).ready()
    assert caught.value.reason == "MEMBERS_UNKNOWN" and caught.value.retry_after_s == 2
    assert "those of cms were not read here yet" in caught.value.sentence
    assert agent.health().state.value == "degraded" and "the members of cms are not known" in agent.health().detail
    await (await lab.channel("storage", credential=lab.operator())).ready()

    await lab.start("vo")
    await until(lambda: agent.health().state.value == "green")
    with pytest.raises(Refused) as refused:
        await (await lab.channel("storage", credential=lab.user("bob", vo=None))).ready()
    assert refused.value.reason == "NOT_MAPPED"
