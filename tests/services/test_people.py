"""People: roles and access, leaving and coming back, invitations (T-29, T-30)."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select, update

from portal.demo import PASSWORD
from portal.rules.access import AccessLevel, Role
from portal.rules.credentials import token_digest
from portal.rules.errors import (
    Conflict,
    Forbidden,
    Invalid,
    KeyRefused,
    NeedsProof,
    NotFound,
    PortalError,
    TooManyAttempts,
)
from portal.services import accounts, api_members, audit, invitations, key_lists, keys, members, passwords, people
from portal.services.actor import Actor, Means
from portal.services.invitations import NewAccount
from portal.services.passwords import NewPassword
from portal.services.people import Filters
from portal.store.models import Account, Invitation, Member, OutgoingMail, UserSession, Workspace
from tests.services.office import API_MEMBER, NOON, Office

NONE, READ, FULL, MANAGE = AccessLevel
MALLORY: dict[str, Any] = {"email": "mallory@acme.test", "role": "admin", "levels": {}, "base_url": "https://keys.test"}
_A_WHILE = 0.3  # seconds in which a statement that waits for nobody is done


def do(office: Office, who: str, what: Any, *given: Any, **named: Any) -> Any:
    actor = office.actor(who)
    with audit.transaction(office.database, actor) as session:
        return what(session, actor, *given, **named)


def give(office: Office, who: str, name: str, role: str = "member", **more: Any) -> Any:
    given = {"levels": {}, "was": None, "is_proved": True} | more
    return do(office, who, people.set_access, office.keyring, office.member(name).public_id, role=role, **given)


def leave(office: Office, who: str, name: str, then: str) -> Any:
    return do(office, who, people.leave, office.member(name).public_id, then)


def switch(office: Office, what: Any, email: str) -> Any:
    """Switch an account off or on, as an operator does."""
    with office.database.transaction() as session:
        return what(session, Actor(NOON, Means.COMMAND, "operator"), email)


def levels(office: Office, name: str) -> dict[str, AccessLevel]:
    with office.database.reading() as session:
        return members.levels_of(session, office.member(name))


# --- Roles and access -----------------------------------------------------------------------------------------------


def test_an_admin_changes_role_and_access_and_it_counts_at_once(office: Office) -> None:
    _, plain = office.generate("rio", scopes=["tasks:read", "reservations:read"])
    give(office, "ana", "rio", levels={"operations": NONE, "sales": MANAGE})
    assert levels(office, "rio") == {"operations": NONE, "sales": MANAGE}
    assert office.check(plain).reach.effective == frozenset()
    give(office, "ana", "rio", "admin")
    assert office.seat("rio").is_admin
    assert len(office.check(plain).reach.effective) == 2  # never past its own scopes
    before = {"operations": "read", "sales": "none"}
    told = [(event.action, event.details) for event in office.told(target_id=office.member("rio").public_id)]
    assert told == [
        ("access_granted", {"before": before, "after": {"operations": "none", "sales": "manage"}}),
        ("role_changed", {"before": "member", "after": "admin"}),
    ]


@pytest.mark.parametrize("who", ["lea", "max", "rio", "zoe"])
@pytest.mark.parametrize("name", ["rio", "lea"])
def test_nobody_but_an_admin_changes_a_human(shared_office: Office, who: str, name: str) -> None:
    before = levels(shared_office, name)
    with pytest.raises(NotFound if who == "zoe" else Forbidden):
        give(shared_office, who, name, "admin", levels={"operations": FULL})
    assert (levels(shared_office, name), shared_office.member(name).role) == (before, "member")
    (told,) = shared_office.told(outcome="refused")
    assert (told.action, told.target_id) == ("access_granted", shared_office.member(name).public_id)


def test_an_api_member_is_no_person(shared_office: Office) -> None:
    with pytest.raises(NotFound):
        give(shared_office, "ana", API_MEMBER, "admin")
    with pytest.raises(NotFound):
        leave(shared_office, "ana", API_MEMBER, "remove")


def test_an_admin_gives_nothing_to_themselves_for_the_time_after(office: Office) -> None:
    with pytest.raises(Forbidden):
        give(office, "ana", "ana", "admin", levels={"sales": MANAGE})
    assert levels(office, "ana") == {"operations": NONE, "sales": NONE}


@pytest.mark.parametrize("change", [{"role": "member"}, *({"then": then} for then in people.THEN)])
def test_the_last_admin_stays(office: Office, change: dict[str, str]) -> None:
    def go() -> None:
        leave(office, "ana", "ana", change["then"]) if "then" in change else give(office, "ana", "ana", **change)

    with pytest.raises(Conflict):
        go()
    with pytest.raises(Conflict):  # though it would also be more for oneself in one place
        give(office, "ana", "ana", "member", levels={"sales": MANAGE})
    office.change("max", role=Role.ADMIN, deactivated_at=NOON)  # one who cannot come in does not count
    with pytest.raises(Conflict):
        go()
    office.change("max", deactivated_at=None)
    go()
    assert not (office.member("ana").is_active and office.member("ana").role == "admin")


def test_more_needs_a_fresh_proof_and_less_does_not(office: Office) -> None:
    for change in ({"role": "admin"}, {"levels": {"sales": READ}}):
        with pytest.raises(NeedsProof):
            give(office, "ana", "rio", is_proved=False, **change)
    give(office, "ana", "rio", is_proved=False, levels={"operations": NONE})
    office.change("max", role=Role.ADMIN)
    give(office, "ana", "max", "member", is_proved=False)
    assert office.member("max").role == "member"


def test_a_stale_form_saves_nothing(office: Office) -> None:
    shown = people.version_of("member", levels(office, "rio"))
    give(office, "ana", "rio", "admin", was=shown)
    with pytest.raises(Conflict):
        give(office, "ana", "rio", "member", was=shown)
    assert office.member("rio").role == "admin"


@pytest.mark.parametrize(
    ("more", "refusal"),
    [({"role": "owner"}, Invalid), ({"role": ""}, Invalid), ({"levels": {"support": READ}}, Forbidden)],
)
def test_what_there_is_not_is_not_given(shared_office: Office, more: Any, refusal: type[PortalError]) -> None:
    with pytest.raises(refusal):
        give(shared_office, "ana", "rio", **more)


# --- Leaving and coming back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["deactivate", "remove"])
def test_who_leaves_is_out_with_all_keys_and_comes_back_without_them(office: Office, then: str) -> None:
    key, plain = office.generate("rio")
    leave(office, "ana", "rio", then)
    with pytest.raises(KeyRefused):
        office.check(plain)
    with pytest.raises(Forbidden):
        office.generate("rio", name="Another")
    with pytest.raises(Conflict):
        leave(office, "ana", "rio", then)
    _, count = do(office, "ana", people.reactivate, office.member("rio").public_id)
    assert count == 1
    with pytest.raises(KeyRefused):  # T-30
        office.check(plain)
    came_back_with = {"deactivate": READ, "remove": NONE}[then]
    assert levels(office, "rio") == {"operations": came_back_with, "sales": NONE}
    office.act("rio", keys.reactivate, key.id)
    assert bool(office.check(plain).reach.effective) is (then == "deactivate")
    with pytest.raises(Conflict):
        do(office, "ana", people.reactivate, office.member("rio").public_id)


def test_a_key_that_was_stopped_before_its_owner_left_is_not_stopped_once_more(office: Office) -> None:
    office.generate("rio")
    stopped, _ = office.generate("rio", name="Stopped before")
    office.act("rio", keys.deactivate, stopped.id, at=NOON - timedelta(hours=1))
    leave(office, "ana", "rio", "deactivate")
    _, count = do(office, "ana", people.reactivate, office.member("rio").public_id)
    assert (count, office.row(stopped.id).deactivated_at) == (1, NOON - timedelta(hours=1))
    assert len(office.told(action="key_deactivated", target_id=stopped.id)) == 1


def test_an_account_that_is_off_has_no_session_and_no_key_and_on_again_its_keys(office: Office) -> None:
    made, plain = office.generate("rio")
    email = "rio@acme.test"
    with office.database.transaction() as session:
        attempt = accounts.begin_attempt(session, office.actor("rio"), email)
        accounts.sign_in(session, office.actor("rio"), attempt, "Firefox")
    assert office.check(plain)
    ended = switch(office, people.deactivate_account, " Rio@acme.test")
    assert ended == people.Ended(sessions=1, keys=1, orphans=[])
    with pytest.raises(KeyRefused, match="owner_inactive"):
        office.check(plain)
    with pytest.raises(Forbidden):  # a request that was under way
        office.seat("rio")
    with office.database.reading() as session:
        assert session.scalars(select(UserSession)).all() == []
        shown = people.list_for(session, office.seat("ana"), Filters(state="deactivated"), number=1, size=9, now=NOON)
        assert [row.member.name for row in shown.rows] == ["Rio Tanaka"]
        shown = people.list_for(session, office.seat("ana"), Filters(state="active"), number=1, size=9, now=NOON)
        assert [row.member.name for row in shown.rows] == ["Ana Ruiz", "Lea Okoro", "Max Brandt"]
        asked = key_lists.count_for(session, office.actor("ana"), office.seat("ana"), "all")
        assert (asked.active, asked.stopped) == (0, 1)
    assert not office.view("ana", made.id).owner.is_active
    assert [key.id for key in office.page("ana", owner="all", state="deactivated").rows] == [made.id]
    assert office.page("ana", owner="all", state="active").rows == []
    assert switch(office, people.deactivate_account, email) is None

    assert switch(office, people.reactivate_account, email)
    assert switch(office, people.reactivate_account, email) is None
    assert office.check(plain)
    assert office.view("ana", made.id).owner.is_active
    told = [event for event in office.told() if event.action.startswith("account_")]
    acme = office.member("rio").workspace_id
    assert {(event.action, event.workspace_id) for event in told} == {
        (f"account_{what}", where) for what in ("deactivated", "reactivated") for where in (None, acme)
    }
    assert len(told) == 4


def test_where_somebody_was_removed_nothing_more_is_told_of_their_account(office: Office) -> None:
    leave(office, "ana", "rio", "remove")
    before = len(office.told())
    switch(office, people.deactivate_account, "rio@acme.test")
    assert [event.workspace_id for event in office.told()[before:]] == [None]


def test_an_account_that_was_taken_over_is_stopped_though_it_is_the_last_admins(office: Office) -> None:
    office.change("max", role=Role.ADMIN)
    invite(office, "ana", email="mallory@acme.test")
    invite(office, "max", email="ida@acme.test")
    assert switch(office, people.deactivate_account, "ana@acme.test").orphans == []
    with office.database.reading() as session:
        open_to = session.scalars(select(Invitation.email).where(Invitation.withdrawn_at.is_(None))).all()
        max_ = office.seat("max")
        assert members.admin_names(session, max_.workspace.id) == [max_.member.name]
        (sales,) = (each.id for each in members.solutions_of(session, max_.workspace.id) if each.slug == "sales")
        assert members.granters(session, max_, [sales], for_api_member=True) == {sales: [max_.member.name]}
        assert api_members.manager_of(session, office.member(API_MEMBER))[1]
    assert open_to == ["ida@acme.test"]
    switch(office, people.deactivate_account, "lea@acme.test")
    with office.database.reading() as session:
        assert not api_members.manager_of(session, office.member(API_MEMBER))[1]  # administrators are told of it
    assert switch(office, people.deactivate_account, "max@acme.test").orphans == ["acme"]


def test_an_account_comes_back_without_its_password_and_with_one_new_link(office: Office) -> None:
    email, rio = "rio@acme.test", office.actor("rio")
    with office.database.transaction() as session:
        account = session.scalars(select(Account).where(Account.email == email)).one()
        sent = passwords.begin_reset(session, rio, account)
        attempt = accounts.begin_attempt(session, rio, email)
    switch(office, people.deactivate_account, email)
    token = switch(office, people.reactivate_account, email)
    with pytest.raises(Conflict), office.database.transaction() as session:  # a sign-in that was under way
        accounts.sign_in(session, rio, attempt, "Firefox")
    with office.database.transaction() as session:
        assert not accounts.begin_attempt(session, rio, email).verify(PASSWORD)
        with pytest.raises(NotFound):
            passwords.open_reset(session, rio, sent)
        passwords.reset(session, rio, token, NewPassword.choose("twelve chars", "twelve chars", stop_keys=False))
        assert accounts.begin_attempt(session, rio, email).verify("twelve chars")


def test_an_invitation_that_is_being_sent_while_its_account_is_switched_off_is_withdrawn(office: Office) -> None:
    office.change("max", role=Role.ADMIN)
    with ThreadPoolExecutor() as pool:
        with office.database.transaction() as session:
            invitations.invite(session, office.actor("ana"), **MALLORY)
            off = pool.submit(switch, office, people.deactivate_account, "ana@acme.test")
            with pytest.raises(TimeoutError):
                off.result(_A_WHILE)
        off.result()
    with office.database.reading() as session:
        assert session.scalars(select(Invitation.withdrawn_at)).all() == [NOON]


@pytest.mark.parametrize("what", ["invites", "gives a role", "generates a key"])
def test_who_waits_while_their_account_is_switched_off_does_nothing_more(office: Office, what: str) -> None:
    office.change("max", role=Role.ADMIN)
    then = {
        "invites": partial(do, office, "ana", invitations.invite, **MALLORY),
        "gives a role": partial(give, office, "ana", "rio", "admin"),
        "generates a key": partial(office.generate, "ana"),
    }[what]
    with ThreadPoolExecutor() as pool:
        with office.database.transaction() as session:
            people.deactivate_account(session, Actor(NOON, Means.COMMAND, "operator"), "ana@acme.test")
            waits = pool.submit(then)
            with pytest.raises(TimeoutError):
                waits.result(_A_WHILE)
        with pytest.raises(Forbidden):
            waits.result()


@pytest.mark.parametrize("email", ["nobody@acme.test", "", "Nightly sync", "\x00"])
def test_who_has_no_account_is_told_so(shared_office: Office, email: str) -> None:
    for what in (people.deactivate_account, people.reactivate_account):
        with pytest.raises(NotFound, match="has an account"):
            switch(shared_office, what, email)


def test_an_admin_who_was_removed_comes_back_as_a_plain_member(office: Office) -> None:
    office.change("max", role=Role.ADMIN)
    leave(office, "ana", "max", "remove")
    do(office, "ana", people.reactivate, office.member("max").public_id)
    assert office.member("max").role == "member"


def test_demoting_is_for_admins_and_leaves_what_was_written_down(office: Office) -> None:
    with pytest.raises(Conflict):
        leave(office, "ana", "max", "demote")
    office.change("max", role=Role.ADMIN)
    _, plain = office.generate("max", scopes=["leads:write", "tasks:write"])
    with office.database.reading() as session:
        seen = people.preview(
            session, office.actor("ana"), office.seat("ana"), office.keyring, office.member("max").public_id
        )
    (risk,) = seen.keys
    assert [scope.text for scope in risk.lost_at(seen.levels)] == ["tasks:write"]
    leave(office, "ana", "max", "demote")
    assert office.check(plain).reach.effective_texts == ("leads:write",)


@pytest.mark.parametrize("who", ["lea", "rio", "zoe"])
@pytest.mark.parametrize("then", people.THEN)
def test_nobody_but_an_admin_lets_somebody_go(shared_office: Office, who: str, then: str) -> None:
    with pytest.raises(NotFound if who == "zoe" else Forbidden):
        leave(shared_office, who, "max", then)
    assert shared_office.member("max").is_active


def test_the_preview_names_keys_api_members_and_where_keys_can_go(office: Office) -> None:
    key, _ = office.generate("lea")
    with office.database.reading() as session:
        given = (office.actor("ana"), office.seat("ana"), office.keyring, office.member("lea").public_id)
        seen = people.preview(session, *given)
    assert [each.key.id for each in seen.keys] == [key.id]
    assert [each.name for each in seen.led] == [API_MEMBER]
    assert [(each.name, access) for each, access in seen.heirs] == [(API_MEMBER, {"operations": READ})]
    with pytest.raises(Forbidden), office.database.reading() as session:
        people.preview(session, office.actor("lea"), office.seat("lea"), office.keyring, given[3])


# --- The list -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, ["ana", "lea", "max", "rio"]),
        ({"q": "TANAKA"}, ["rio"]),
        ({"q": "max@"}, ["max"]),
        ({"q": "100%"}, []),
        ({"role": "admin"}, ["ana"]),
        ({"role": "lead"}, ["lea"]),
        ({"role": "member"}, ["max", "rio"]),
        ({"solution": "sales"}, ["ana", "lea", "max"]),
        ({"solution": "support"}, ["ana"]),  # a solution of globex is nobody's here but an admin's, who has all
        ({"state": "active"}, ["ana", "lea", "max", "rio"]),
        ({"state": "removed"}, []),
    ],
)
def test_people_are_found_by_name_role_and_solution(
    shared_office: Office, filters: dict[str, str], names: list[str]
) -> None:
    with shared_office.database.reading() as session:
        found = people.list_for(session, shared_office.seat("lea"), Filters(**filters), number=1, size=25, now=NOON)
    assert [row.member.account.email.partition("@")[0] for row in found.rows if row.member.account] == names
    assert found.total == len(names)


def test_the_list_counts_keys_and_tells_of_those_who_left(office: Office) -> None:
    key, _ = office.generate("rio")
    office.generate("rio", name="Another")
    office.use(key.id, NOON)
    leave(office, "ana", "rio", "deactivate")
    leave(office, "ana", "max", "deactivate")
    leave(office, "ana", "max", "remove")
    with office.database.reading() as session:
        seat = office.seat("ana")
        found = people.list_for(session, seat, Filters(), number=1, size=25, now=NOON)
        gone = people.list_for(session, seat, Filters(state="removed"), number=1, size=25, now=NOON)
        off = people.list_for(session, seat, Filters(state="deactivated"), number=1, size=25, now=NOON)
    assert [(row.member.name, row.keys) for row in found.rows] == [("Ana Ruiz", 0), ("Lea Okoro", 0), ("Rio Tanaka", 2)]
    assert found.rows[2].last_used_at is not None
    assert [row.member.name for row in gone.rows] == ["Max Brandt"]
    assert [row.member.name for row in off.rows] == ["Rio Tanaka"]


@pytest.mark.parametrize("who", ["max", "rio"])
def test_plain_members_see_no_list(shared_office: Office, who: str) -> None:
    with pytest.raises(Forbidden), shared_office.database.reading() as session:
        people.list_for(session, shared_office.seat(who), Filters(), number=1, size=25, now=NOON)
    with pytest.raises(Forbidden), shared_office.database.reading() as session:
        people.get(session, shared_office.seat(who), shared_office.member("lea").public_id)


def test_nobody_is_found_in_another_workspace(shared_office: Office) -> None:
    with pytest.raises(NotFound), shared_office.database.reading() as session:
        people.get(session, shared_office.seat("zoe"), shared_office.member("lea").public_id)


# --- Invitations ----------------------------------------------------------------------------------------------------


def invite(office: Office, who: str = "ana", **answers: Any) -> str:
    usual = {"email": "ida@acme.test", "role": "member", "levels": {}, "base_url": "https://keys.example.org"}
    link: str = do(office, who, invitations.invite, **usual | answers)
    return link


def accept(office: Office, link: str, name: str = "Ida Berg") -> Member:
    token, visitor = link.rpartition("/")[2], Actor(NOON, Means.SESSION, "visitor")
    with office.database.transaction() as session:
        known = invitations.get_by_token(session, token, visitor).account
        who = known or NewAccount.choose(name, "twelve chars", "twelve chars")
        return invitations.accept(session, visitor, token, who)


def test_who_is_invited_has_the_access_that_they_were_invited_with(office: Office) -> None:
    link = invite(office, levels={"sales": MANAGE, "operations": NONE})
    accept(office, link)
    assert levels(office, "ida") == {"operations": NONE, "sales": MANAGE}
    with office.database.reading() as session:
        assert members.givers_of(session, office.member("ida")) == {"sales": "Ana Ruiz"}
    (granted,) = office.told(action="access_granted")
    assert granted.details == {"before": {"sales": "none"}, "after": {"sales": "manage"}, "invited_by": "Ana Ruiz"}


@pytest.mark.parametrize("then", ["deactivate", "remove"])
def test_who_had_left_comes_back_with_what_the_invitation_says_and_nothing_else(office: Office, then: str) -> None:
    leave(office, "ana", "lea", then)
    accept(office, invite(office, email="lea@acme.test", levels={"sales": FULL}))
    assert levels(office, "lea") == {"operations": NONE, "sales": FULL}


def test_who_accepts_an_invitation_is_named_in_all_that_it_does(office: Office) -> None:
    office.generate("rio")
    leave(office, "ana", "rio", "deactivate")
    before = len(office.told())
    accept(office, invite(office, email="rio@acme.test", levels={"sales": FULL}))
    did = {event.action: (event.actor_name, event.actor_id) for event in office.told()[before + 1 :]}
    rio = ("Rio Tanaka", office.member("rio").public_id)
    assert did == dict.fromkeys(["access_granted", "key_deactivated", "member_joined"], rio)


def test_the_link_is_mailed_and_kept_nowhere_else(office: Office) -> None:
    link = invite(office)
    token = link.rpartition("/")[2]
    with office.database.reading() as session:
        mail = session.scalars(select(OutgoingMail)).one()
        kept = session.scalars(select(Invitation)).one()
    assert (mail.recipient, mail.subject) == ("ida@acme.test", "Join Acme")
    assert link in mail.body
    assert kept.token_hash == token_digest(token)
    assert token not in repr([vars(event) for event in office.told()])


@pytest.mark.parametrize(
    ("answers", "field"),
    [({"email": "ida"}, "email"), ({"email": "rio@acme.test"}, "email"), ({"role": "owner"}, "role")],
)
def test_answers_that_cannot_be_are_to_be_mended(shared_office: Office, answers: Any, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        invite(shared_office, **answers)
    assert list(refused.value.problems) == [field]


def test_nobody_is_invited_to_what_there_is_not(shared_office: Office) -> None:
    with pytest.raises(Forbidden):
        invite(shared_office, levels={"support": READ})  # a solution of globex


@pytest.mark.parametrize("who", ["lea", "rio"])
def test_only_admins_invite_see_and_withdraw(office: Office, who: str) -> None:
    with pytest.raises(Forbidden):
        invite(office, who)
    invite(office)
    with office.database.reading() as session:
        kept = session.scalars(select(Invitation)).one()
        with pytest.raises(Forbidden):
            invitations.list_open(session, office.actor(who), office.seat(who))
    with pytest.raises(Forbidden):
        do(office, who, invitations.withdraw, kept.public_id)


def test_a_withdrawn_invitation_and_an_earlier_one_open_nothing(office: Office) -> None:
    first, second = invite(office), invite(office)
    with pytest.raises(NotFound):
        accept(office, first)
    with office.database.reading() as session:
        ((waiting, by),) = invitations.list_open(session, office.actor("ana"), office.seat("ana"))
    assert by == "Ana Ruiz"
    do(office, "ana", invitations.withdraw, waiting.public_id)
    with pytest.raises(NotFound):
        accept(office, second)
    with pytest.raises(NotFound):
        do(office, "ana", invitations.withdraw, waiting.public_id)


@pytest.mark.parametrize("change", [{"role": Role.MEMBER}, {"deactivated_at": NOON}, {"removed_at": NOON}, {}])
def test_an_invitation_opens_nothing_once_its_sender_invites_nobody_any_more(
    office: Office, change: dict[str, Any]
) -> None:
    """Also one that was not withdrawn with the sender's rights."""
    link = invite(office)
    if change:
        office.change("ana", **change)
    else:
        with office.database.transaction() as session:
            session.execute(update(Account).where(Account.email == "ana@acme.test").values(deactivated_at=NOON))
    with pytest.raises(NotFound, match="used or has expired"):
        accept(office, link)


def test_so_many_invitations_are_open_at_once_and_no_more(office: Office) -> None:
    with office.database.transaction() as session:
        acme = session.scalars(select(Workspace).where(Workspace.slug == "acme")).one()
        for n in range(invitations.MAX_OPEN):
            invitations.issue(session, Actor(NOON, Means.COMMAND, "operator"), acme, f"p{n}@acme.test", Role.MEMBER)
    with pytest.raises(Conflict, match="100 open invitations"):
        invite(office, email="one.more@acme.test")
    invite(office, email="p7@acme.test")  # in place of the one before
    with office.database.reading() as session:
        waiting = invitations.list_open(session, office.actor("ana"), office.seat("ana"))
    assert len(waiting) == invitations.MAX_OPEN
    do(office, "ana", invitations.withdraw, waiting[-1][0].public_id)
    invite(office, email="one.more@acme.test")


def test_one_administrator_mails_so_many_an_hour_and_no_more(office: Office) -> None:
    for _ in range(invitations.MAX_AN_HOUR):
        invite(office, email="ida@acme.test")
    with pytest.raises(TooManyAttempts) as refused:
        invite(office, email="ida@acme.test")
    assert refused.value.retry_at == NOON + timedelta(hours=1)
    office.change("max", role=Role.ADMIN)
    invite(office, "max", email="eva@acme.test")
    with office.database.transaction() as session:
        session.execute(update(Invitation).values(created_at=NOON - timedelta(hours=1)))
    invite(office, email="ida@acme.test")


def test_an_invitation_of_another_workspace_is_not_withdrawn(office: Office) -> None:
    invite(office)
    with office.database.reading() as session:
        kept = session.scalars(select(Invitation)).one()
    with pytest.raises(NotFound):
        do(office, "zoe", invitations.withdraw, kept.public_id)


@pytest.mark.parametrize("then", ["demote", "deactivate", "remove", "role"])
def test_what_an_admin_has_sent_ends_with_their_rights(office: Office, then: str) -> None:
    office.change("max", role=Role.ADMIN)
    link = invite(office, "max", role="admin")
    if then == "role":
        assert give(office, "ana", "max").withdrawn == 1
    else:
        leave(office, "ana", "max", then)
    with pytest.raises(NotFound):
        accept(office, link)
    assert len(office.told(action="invitation_withdrawn")) == 1


def test_what_had_expired_before_does_not_end_once_more(office: Office) -> None:
    office.change("max", role=Role.ADMIN)
    invite(office, "max")
    later = office.actor("ana", NOON + timedelta(days=7))
    mid = office.member("max").public_id
    with office.database.transaction() as session:
        saved = people.set_access(
            session, later, office.keyring, mid, role="member", levels={}, was=None, is_proved=False
        )
    assert saved.withdrawn == 0 and not office.told(action="invitation_withdrawn")


@pytest.mark.parametrize("then", ["deactivate", "remove"])
def test_who_leaves_does_not_come_back_by_an_old_link(office: Office, then: str) -> None:
    leave(office, "ana", "max", "deactivate")
    link = invite(office, email="max@acme.test", role="admin")
    do(office, "ana", people.reactivate, office.member("max").public_id)
    with pytest.raises(NotFound):
        accept(office, link)
    leave(office, "ana", "max", "deactivate")
    link = invite(office, email="max@acme.test", role="admin")
    office.change("max", deactivated_at=None)  # by whatever way
    leave(office, "ana", "max", then)
    with pytest.raises(NotFound):
        accept(office, link)
    assert not office.member("max").is_active


def test_a_leaver_keeps_the_invitations_to_other_workspaces_and_others_theirs(office: Office) -> None:
    elsewhere = do(
        office, "zoe", invitations.invite, email="max@acme.test", role="member", levels={}, base_url="https://x"
    )
    other = invite(office)
    leave(office, "ana", "max", "remove")
    assert accept(office, other).name == "Ida Berg"
    assert accept(office, elsewhere).name == "Max Brandt"


def test_an_expired_invitation_is_not_listed(office: Office) -> None:
    invite(office)
    later = office.actor("ana", NOON + timedelta(days=7))
    with office.database.reading() as session:
        assert invitations.list_open(session, later, office.seat("ana")) == []


def test_a_new_name_is_told_wherever_one_is(office: Office) -> None:
    here, after = office.actor("max"), {"name": "Maxine Frey"}
    there = accept(office, invite(office, "zoe", email="max@acme.test"))
    visitor = Actor(NOON, Means.SESSION, "Max Brandt", "acc_1")
    with office.database.transaction() as session:
        assert people.rename_self(session, visitor, "max@acme.test", " Maxine Frey ") == "Maxine Frey"
    told = office.told(action="member_edited")
    assert [(each.actor_id, each.workspace_id) for each in told] == [
        (here.public_id, here.workspace_id),
        (there.public_id, there.workspace_id),
    ]
    assert [each.details for each in told] == [{"before": {"name": "Max Brandt"}, "after": after}] * 2


def test_who_was_removed_comes_back_with_their_new_name_and_nobody_is_told_of_it(office: Office) -> None:
    left = office.member("max").public_id
    leave(office, "ana", "max", "remove")
    with office.database.transaction() as session:
        people.rename_self(session, Actor(NOON, Means.SESSION, "Max Brandt", "acc_1"), "max@acme.test", "Maxine Frey")
    assert office.told(action="member_edited") == []
    with office.database.reading() as session:
        assert session.scalar(select(Member.name).where(Member.public_id == left)) == "Max Brandt"
    assert accept(office, invite(office, email="max@acme.test")).name == "Maxine Frey"
