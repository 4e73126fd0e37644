"""Levels, scopes and the sets that follow from them: what a key can do only ever shrinks (T-21 to T-24)."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.rules.access import (
    AccessLevel,
    Action,
    Role,
    Scope,
    effective_scopes,
    grantable_scopes,
    holdable_scopes,
    level_of,
    may_grant,
)

LADDER = (AccessLevel.NONE, AccessLevel.READ, AccessLevel.FULL, AccessLevel.MANAGE)

slugs = st.from_regex(r"[a-z][a-z0-9-]{1,39}", fullmatch=True)
few_apps = st.sampled_from(["leads", "accounts", "tasks", "reservations"])
levels = st.sampled_from(LADDER)
some_scopes = st.frozensets(st.builds(Scope, few_apps, st.sampled_from(Action)))
some_access = st.dictionaries(few_apps, levels)


@given(some_scopes, some_access)
def test_effective_scopes_are_the_keys_own_that_its_member_may_hold(
    scopes: frozenset[Scope], access: dict[str, AccessLevel]
) -> None:
    assert effective_scopes(scopes, access) == scopes & holdable_scopes(access)


@given(some_scopes, some_access, some_access)
def test_no_change_of_access_makes_a_key_grow_past_its_own_scopes(
    scopes: frozenset[Scope], before: dict[str, AccessLevel], after: dict[str, AccessLevel]
) -> None:
    assert effective_scopes(effective_scopes(scopes, before), after) <= effective_scopes(scopes, after) <= scopes


@given(some_scopes, some_access, few_apps, levels, levels)
def test_more_access_never_takes_a_scope_away(
    scopes: frozenset[Scope], access: dict[str, AccessLevel], app: str, one: AccessLevel, other: AccessLevel
) -> None:
    lower, higher = sorted((one, other))
    assert effective_scopes(scopes, access | {app: lower}) <= effective_scopes(scopes, access | {app: higher})


@given(some_access, some_access)
def test_a_creator_can_put_on_a_key_only_what_both_of_them_may_hold(
    owner: dict[str, AccessLevel], creator: dict[str, AccessLevel]
) -> None:
    grantable = grantable_scopes(owner, creator)
    assert grantable <= holdable_scopes(owner)
    assert grantable <= holdable_scopes(creator)
    assert grantable == grantable_scopes(creator, owner)
    assert all(
        effective_scopes([scope], owner) and effective_scopes([scope], creator) for scope in grantable
    )  # nothing is handed out that would not work at once


@pytest.mark.parametrize(
    ("level", "held"),
    [
        (AccessLevel.NONE, set()),
        (AccessLevel.READ, {"tasks:read"}),
        (AccessLevel.FULL, {"tasks:read", "tasks:write"}),
        (AccessLevel.MANAGE, {"tasks:read", "tasks:write"}),
    ],
)
def test_each_level_lets_a_member_hold_what_the_contract_says(level: AccessLevel, held: set[str]) -> None:
    assert {str(scope) for scope in holdable_scopes({"tasks": level})} == held


@given(some_access)
def test_an_app_that_is_out_of_reach_gives_no_scope(access: dict[str, AccessLevel]) -> None:
    everything = [Scope("payroll", action) for action in Action]
    assert effective_scopes(everything, access) == frozenset()


def test_write_does_not_imply_read() -> None:
    only_write = [Scope("tasks", Action.WRITE)]
    assert effective_scopes(only_write, {"tasks": AccessLevel.MANAGE}) == frozenset(only_write)
    assert effective_scopes(only_write, {"tasks": AccessLevel.READ}) == frozenset()


def test_levels_climb_from_none_to_manage() -> None:
    assert all(lower < higher and not higher < lower for lower, higher in pairwise(LADDER))
    assert sorted(set(LADDER)) == list(LADDER)


@given(levels, levels)
def test_any_two_levels_compare_one_way_and_a_higher_one_allows_no_less(one: AccessLevel, other: AccessLevel) -> None:
    assert (one <= other) or (other <= one)
    assert (one < other) == (one <= other and one is not other)
    if one <= other:
        assert one.actions <= other.actions


@given(st.sampled_from(Role), st.none() | levels)
def test_an_admin_manages_everywhere_and_anybody_else_has_what_was_granted(
    role: Role, granted: AccessLevel | None
) -> None:
    expected = AccessLevel.MANAGE if role is Role.ADMIN else granted or AccessLevel.NONE
    assert level_of(role, granted) is expected


@given(levels, levels)
def test_only_who_manages_a_solution_hands_out_access_there_and_full_at_most(
    granter: AccessLevel, level: AccessLevel
) -> None:
    assert may_grant(granter, level) == (granter is AccessLevel.MANAGE and level is not AccessLevel.MANAGE)


@given(slugs, st.sampled_from(Action))
def test_a_scope_reads_back_as_it_was_written(app: str, action: Action) -> None:
    scope = Scope(app, action)
    assert str(scope) == f"{app}:{action}"
    assert Scope.parse(str(scope)) == scope


@given(st.text() | st.text("abz09-:*.readwit", max_size=20))
def test_what_reads_as_a_scope_is_written_exactly_so(text: str) -> None:
    scope = Scope.parse(text)
    assert scope is None or str(scope) == text


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "tasks", "tasks:", ":read", "tasks:read:", "tasks:read:write", "tasks::read",
        "*", "*:read", "tasks:*", "*:*", "task*:read", "tasks:admin", "tasks:delete", "tasks.read",
        "Tasks:read", "TASKS:read", "tasks:Read", "tasks:READ",
        " tasks:read", "tasks:read ", "tasks :read", "tasks: read", "tasks:read\n", "\ttasks:read", "tasks:read\x00",
        "tasks:read,tasks:write", "tasks:read tasks:write", "1tasks:read", "-tasks:read", "t:read",
        "tаsks:read", "tasks：read", "tasks:read\u200b", "tasks:rea\u0064\u0301", "ｔasks:read",  # look-alikes
        "a" * 41 + ":read", "a" * 1_000_000,
    ],
)  # fmt: skip
def test_wildcards_other_case_spaces_and_oddities_are_no_scope(text: str) -> None:
    assert Scope.parse(text) is None
