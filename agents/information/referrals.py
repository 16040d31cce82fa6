"""Names that another level answers: a site or region says who knows the other sites, a top server whose a lost one is.

A name is below a site in any of its forms: `mds-vo-name=SITE,mds-vo-name=local,o=grid`, `mds-vo-name=SITE,o=grid` and
those of GLUE 2.0. Clients that follow referrals end at the site's own server, which refers nothing of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from agents.information.machine import InformationMachine
from agents.information.model import ProducerState
from fabric.information_tree import DOMAINS, GLUE, GRID, LOCAL
from fabric.ldap import Dn
from fabric.settings import Endpoint

_PLACES = ((LOCAL, "mds-vo-name"), (GRID, "mds-vo-name"), (DOMAINS, "glue2domainid"), (GLUE, "glue2domainid"))
"""Above sites, and how a site is named there."""


class Referrals:
    """Which servers to ask for a name that is missing at this one."""

    def __init__(self, machine: InformationMachine, sites: Iterable[Endpoint], tops: Iterable[Endpoint]) -> None:
        self._machine = machine
        self._sites = {endpoint.site.lower(): endpoint for endpoint in sites if endpoint.ldap}
        self._tops = [f"ldap://{top.host}:{top.ldap}" for top in tops if top.ldap]

    def __call__(self, dn: Dn) -> list[str]:
        found = _site(dn)
        if found is None:
            return []
        site, place = found
        machine = self._machine
        if machine.level == "site":
            return self._tops if site != machine.site.lower() else []
        if machine.level == "region" and site not in map(str.lower, machine.producers):
            return self._tops
        endpoint = self._sites.get(site)
        if endpoint is None or (place in (LOCAL, DOMAINS) and self._is_here(endpoint.site)):
            return []
        return [f"ldap://{endpoint.host}:{endpoint.ldap}"]

    def _is_here(self, site: str) -> bool:
        producer = self._machine.producers.get(site)
        return producer is not None and producer.status.state is ProducerState.CURRENT


def _site(dn: Dn) -> tuple[str, Dn] | None:
    """The site, in lower case, that a name is of, and what is above the site there."""
    for place, attribute in _PLACES:
        if dn.is_within(place) and len(dn) > len(place):
            ((name, value), *_) = dn.rdns[len(dn) - len(place) - 1]
            return (value.lower(), place) if name.lower() == attribute else None
    return None
