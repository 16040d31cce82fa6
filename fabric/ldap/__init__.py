"""An embedded LDAPv3 server: entries in, LDAP out. No dependency, no grid terms."""

from fabric.ldap.aliases import AliasedSource
from fabric.ldap.client import LdapClient, LdapError
from fabric.ldap.dn import Dn, DnError, parse_dn
from fabric.ldap.entry import Entry, make_entry
from fabric.ldap.filter_text import FilterSyntaxError, escape_filter_value, format_filter, parse_filter
from fabric.ldap.filters import Filter, compile_filter, matches
from fabric.ldap.schema import AttributeType, Schema
from fabric.ldap.server import LdapLimits, LdapServer
from fabric.ldap.tree import EntryTree, NoSuchEntryError, Scope, SearchSource, TreeError

__all__ = [
    "AliasedSource",
    "AttributeType",
    "Dn",
    "DnError",
    "Entry",
    "EntryTree",
    "Filter",
    "FilterSyntaxError",
    "LdapClient",
    "LdapError",
    "LdapLimits",
    "LdapServer",
    "NoSuchEntryError",
    "Schema",
    "Scope",
    "SearchSource",
    "TreeError",
    "compile_filter",
    "escape_filter_value",
    "format_filter",
    "make_entry",
    "matches",
    "parse_dn",
    "parse_filter",
]
