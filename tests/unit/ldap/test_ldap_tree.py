from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.ldap.ldap_trees import grid_tree

from fabric.ldap import EntryTree, NoSuchEntryError, Scope, TreeError, make_entry, matches, parse_dn, parse_filter


def names(tree: EntryTree, base: str, scope: Scope, text: str = "(objectClass=*)") -> list[str]:
    found = tree.search(parse_dn(base), scope, parse_filter(text))
    return [str(entry.dn) for entry in found if entry is not None]


def test_scopes() -> None:
    tree = grid_tree(2, 1)
    assert names(tree, "o=grid", Scope.BASE) == ["o=grid"]
    assert names(tree, "o=grid", Scope.ONE) == ["mds-vo-name=local,o=grid"]
    assert len(names(tree, "O=GRID", Scope.SUBTREE)) == 6
    assert len(names(tree, "o=grid", Scope.CHILDREN)) == 5
    assert names(tree, "", Scope.ONE) == ["o=grid"]
    assert len(names(tree, "", Scope.SUBTREE)) == 6


def test_missing_base_names_the_deepest_ancestor() -> None:
    with pytest.raises(NoSuchEntryError) as caught:
        names(grid_tree(), "cn=x,mds-vo-name=NOWHERE,mds-vo-name=local,o=grid", Scope.SUBTREE)
    assert str(caught.value.matched) == "mds-vo-name=local,o=grid"


def test_changes_show_at_once_and_a_search_under_way_keeps_its_view() -> None:
    tree = grid_tree(1, 2)
    under_way = tree.search(parse_dn("o=grid"), Scope.SUBTREE, parse_filter("(GlueCEStateFreeJobSlots=1)"))
    entry = tree.get(
        parse_dn("GlueCEUniqueID=ce1.site0:2119/jobmanager-fork,mds-vo-name=SITE0,mds-vo-name=local,o=grid")
    )
    assert entry is not None
    tree.replace(make_entry(entry.dn, {**entry.attributes, "GlueCEStateFreeJobSlots": 7}))
    assert len([found for found in under_way if found]) == 1
    assert len(names(tree, "o=grid", Scope.SUBTREE, "(GlueCEStateFreeJobSlots=7)")) == 1
    assert names(tree, "o=grid", Scope.SUBTREE, "(GlueCEStateFreeJobSlots=1)") == []


def test_add_needs_a_parent_and_a_free_name() -> None:
    tree = grid_tree()
    with pytest.raises(TreeError):
        tree.add(make_entry("cn=a,cn=missing,o=grid", {}))
    with pytest.raises(TreeError):
        tree.add(make_entry("o=grid", {}))
    with pytest.raises(TreeError):
        tree.add(make_entry("o=other", {}))


def test_remove() -> None:
    tree = grid_tree(2, 3)
    site = parse_dn("mds-vo-name=SITE0,mds-vo-name=local,o=grid")
    with pytest.raises(TreeError):
        tree.remove(site)
    gone = tree.remove(site, below=True)
    assert len(gone) == 4
    assert gone[-1].dn == site
    assert tree.remove(site) == []
    assert len(names(tree, "o=grid", Scope.SUBTREE, "(objectClass=GlueCE)")) == 3


def test_many_entries_give_others_a_turn() -> None:
    tree = grid_tree(1, 600)
    ticks = [found for found in tree.search(parse_dn("o=grid"), Scope.SUBTREE, parse_filter("(cn=none)"))]
    assert ticks == [None, None]


CLASSES = st.sampled_from(["A", "B", "C"])


@given(
    st.lists(st.tuples(st.sampled_from(["put", "remove"]), st.integers(0, 12), CLASSES, CLASSES), max_size=40),
    st.sampled_from(
        ["(objectClass=A)", "(|(objectClass=a)(kind=B))", "(&(objectClass=B)(kind=A))", "(!(kind=C))", "(kind=*)"]
    ),
    st.sampled_from(["o=grid", "cn=0,o=grid", "cn=2,o=grid"]),
    st.sampled_from(list(Scope)),
)
def test_indices_agree_with_a_full_scan(
    changes: list[tuple[str, int, str, str]], text: str, base: str, scope: Scope
) -> None:
    tree = EntryTree(["o=grid"], indexed=["kind"])
    tree.add(make_entry("o=grid", {"objectClass": "top"}))
    for number in range(3):
        tree.add(make_entry(f"cn={number},o=grid", {"objectClass": "top"}))
    for action, number, one, other in changes:
        dn = parse_dn(f"cn=leaf{number},cn={number % 3},o=grid")
        if action == "remove":
            tree.remove(dn)
        else:
            tree.replace(make_entry(dn, {"objectClass": one, "kind": other}))
    node = parse_filter(text)
    root = parse_dn(base)
    everything = [e for e in tree.search(parse_dn("o=grid"), Scope.SUBTREE, parse_filter("(objectClass=*)")) if e]
    inside = {
        Scope.BASE: lambda e: e.dn == root,
        Scope.ONE: lambda e: e.dn.parent == root,
        Scope.SUBTREE: lambda e: e.dn.is_within(root),
        Scope.CHILDREN: lambda e: e.dn.is_within(root) and e.dn != root,
    }[scope]
    found = [entry for entry in tree.search(root, scope, node) if entry is not None]
    assert {e.dn for e in found} == {e.dn for e in everything if inside(e) and matches(node, e)}
    seen: set[object] = set()
    for entry in found:
        assert all(other.dn != entry.dn.parent for other in found if other.dn not in seen)
        seen.add(entry.dn)
