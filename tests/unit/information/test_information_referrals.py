"""Names of other levels: who is named to ask instead, and that nobody is sent in a circle."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agents.information.machine import InformationMachine
from agents.information.model import Publication
from agents.information.referrals import Referrals
from fabric.ldap import LdapClient, LdapError, LdapServer, parse_dn
from fabric.settings import Endpoint

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SITES = [
    Endpoint("information", f"information.{site}", f"{site.lower()}.org", site, ldap=2170) for site in ("CERN", "RAL")
]
TOPS = [Endpoint("top", "top.A", "a.org", ldap=2170), Endpoint("top", "top.B", "b.org", ldap=2170)]
FORMS = (
    "mds-vo-name={},mds-vo-name=local,o=grid",
    "mds-vo-name={},o=grid",
    "GLUE2DomainID={},GLUE2GroupID=grid,o=glue",
    "GLUE2DomainID={},o=glue",
)


@pytest.mark.parametrize("form", FORMS)
def test_a_site_names_the_top_servers_for_every_other_site_and_nobody_for_itself(form: str) -> None:
    refer = Referrals(InformationMachine("site", "CERN", NOW), SITES, TOPS)
    assert refer(parse_dn(form.format("RAL"))) == ["ldap://a.org:2170", "ldap://b.org:2170"]
    assert refer(parse_dn("GlueCEUniqueID=x," + form.format("Ral"))) == ["ldap://a.org:2170", "ldap://b.org:2170"]
    assert refer(parse_dn("GlueCEUniqueID=gone," + form.format("cern"))) == []


@pytest.mark.parametrize(
    "text", ["", "o=grid", "o=glue", "o=elsewhere", "cn=x,o=grid", "cn=x,mds-vo-name=local,o=grid"]
)
def test_names_of_no_site_are_nobodys(text: str) -> None:
    for level in ("site", "top"):
        assert Referrals(InformationMachine(level, "CERN", NOW), SITES, TOPS)(parse_dn(text)) == []


def test_the_top_names_a_site_that_it_has_lost_and_answers_for_those_it_hears() -> None:
    machine = InformationMachine("top", "TOP", NOW, expected=["CERN", "RAL"])
    machine.open_stream("CERN", "CERN", 1, NOW)
    machine.publish("CERN", 1, Publication(1, True), NOW)
    refer = Referrals(machine, SITES, TOPS)
    below = "GlueCEUniqueID=x,mds-vo-name={},mds-vo-name=local,o=grid"
    assert refer(parse_dn(below.format("CERN"))) == [], "what CERN does not publish is not there"
    assert refer(parse_dn(below.format("ral"))) == ["ldap://ral.org:2170"]
    assert refer(parse_dn(below.format("UNKNOWN"))) == []
    machine.tick(NOW + timedelta(seconds=60))
    assert refer(parse_dn(below.format("CERN"))) == ["ldap://cern.org:2170"]


def test_the_short_name_of_a_site_is_answered_by_the_site() -> None:
    machine = InformationMachine("top", "TOP", NOW, expected=["RAL"])
    machine.open_stream("RAL", "RAL", 1, NOW)
    machine.publish("RAL", 1, Publication(1, True), NOW)
    assert Referrals(machine, SITES, TOPS)(parse_dn("mds-vo-name=RAL,o=grid")) == ["ldap://ral.org:2170"]


def test_a_site_without_an_address_is_not_named() -> None:
    hidden = [Endpoint("information", "information.RAL", "ral.org", "RAL")]
    refer = Referrals(InformationMachine("top", "TOP", NOW, expected=["RAL"]), hidden, [])
    assert refer(parse_dn("mds-vo-name=RAL,o=grid")) == []


async def test_a_client_is_told_where_to_ask() -> None:
    machine = InformationMachine("site", "CERN", NOW)
    server = LdapServer(machine.tree, refer=Referrals(machine, SITES, TOPS))
    await server.start()
    try:
        async with await LdapClient.connect("127.0.0.1", server.port) as client:
            with pytest.raises(LdapError) as found:
                await client.search("mds-vo-name=RAL,o=grid")
            assert found.value.code == 10
            assert "ask ldap://a.org:2170/mds-vo-name=RAL,o=grid??sub" in found.value.sentence
            with pytest.raises(LdapError) as found:
                await client.search("cn=x,mds-vo-name=CERN,mds-vo-name=local,o=grid")
            assert found.value.code == 32 and "ask" not in found.value.sentence
    finally:
        await server.close()
