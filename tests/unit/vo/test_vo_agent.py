import pytest
from support.grid import ORGANISATION, LabGrid

from agents.vo.client import VoClient
from agents.vo.model import checked_member
from fabric.errors import Exhausted, InvalidRequest, Refused
from fabric.ldap.client import LdapClient
from fabric.ldap.filter_text import parse_filter

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
    await lab.start("vo")
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
