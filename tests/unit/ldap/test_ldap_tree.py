from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.ldap.ldap_trees import grid_tree

from fabric.ldap import (
    Entry,
    EntryTree,
    NoSuchEntryError,
    Scope,
    TreeError,
    make_entry,
    matches,
    parse_dn,
    parse_filter,
)
from fabric.ldap import tree as trees

QUESTIONS = [
    "(objectClass=*)", "(objectClass=GlueCE)", "(&(objectClass=GlueCE)(GlueCEUniqueID=a))",
    "(|(n=1)(GlueCEUniqueID=b))",
    "(&(objectClass=GlueCE)(n=1))", "(|(objectClass=MDS)(GlueCEUniqueID=a))", "(&(GlueCEUniqueID=a)(GlueCEUniqueID=b))",
    "(!(objectClass=GlueCE))", "(&)", "(|)",
]  # fmt: skip


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


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("ABCD"),
            st.sampled_from(["GlueCE", "MDS", ""]),
            st.sampled_from("ab"),
            st.sampled_from("12"),
        ),
        max_size=6,
    )
)
def test_kept_answers_are_those_of_now(changes: list[tuple[str, str, str, str]]) -> None:
    kept, trees.WORTH_KEEPING = trees.WORTH_KEEPING, -1
    try:
        tree = grid_tree(1, 2)
        site = "mds-vo-name=SITE0,mds-vo-name=local,o=grid"
        there: dict[str, Entry] = {
            str(e.dn): e for e in tree.search(parse_dn(""), Scope.SUBTREE, parse_filter("(&)")) if e
        }
        for name, kind, unique, value in changes:
            dn = f"cn={name},{site}"
            if kind:
                entry = make_entry(dn, {"objectClass": ("top", kind), "GlueCEUniqueID": unique, "n": value})
                tree.replace(entry)
                there[dn] = entry
            else:
                tree.remove(parse_dn(dn))
                there.pop(dn, None)
            for text in QUESTIONS:
                right = sorted(dn for dn, one in there.items() if matches(parse_filter(text), one, tree.schema))
                assert sorted(names(tree, "", Scope.SUBTREE, text)) == right
                assert sorted(names(tree, site, Scope.SUBTREE, text)) == [dn for dn in right if dn.endswith(site)]
                assert sorted(names(tree, site, Scope.CHILDREN, text)) == [
                    dn for dn in right if dn.endswith("," + site)
                ]
    finally:
        trees.WORTH_KEEPING = kept
