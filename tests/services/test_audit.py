"""The audit log: a change and its row come and go together; a refused change leaves one of its own (T-75, T-76)."""

from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, text
from sqlalchemy.exc import IntegrityError

from portal.rules.errors import Attempt, Conflict, Forbidden, PortalError
from portal.services import audit, audit_reading, audit_views, keys
from portal.services.actor import Actor, Means, operator
from portal.services.audit import Event
from portal.services.audit_views import Filters
from portal.store.models import Account, ApiKey, AuditEvent, AuditHead
from tests.services.office import NOON, Office


def test_a_change_that_is_rolled_back_leaves_no_row(office: Office) -> None:
    before = office.told()
    actor, draft = office.actor("rio"), office.draft("rio")
    with pytest.raises(RuntimeError), audit.transaction(office.database, actor) as session:
        keys.create(session, actor, office.keyring, draft)
        raise RuntimeError
    assert len(office.told()) == len(before)
    with office.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(ApiKey)) == 0


def test_a_row_that_cannot_be_written_takes_its_change_with_it(office: Office) -> None:
    key, _ = office.generate("rio")
    actor = office.actor("rio")
    taken = office.told()[0].public_id
    with pytest.raises(IntegrityError), office.database.transaction() as session:
        keys.deactivate(session, actor, office.keyring, key.id)
        values = {"public_id": taken, "at": NOON, "action": "x", "outcome": "done", "means": "session"}
        session.execute(insert(AuditEvent).values(**values, actor_name="", target_name="", details={}))
    assert office.row(key.id).deactivated_at is None


def test_a_refused_change_is_told_in_a_transaction_of_its_own(office: Office) -> None:
    actor = office.actor("rio")
    refused = Forbidden("Not you.", attempt=Attempt(Event.KEY_DELETED, "key_1", "A key", {"why": 1}))
    with pytest.raises(Forbidden), audit.transaction(office.database, actor) as session:
        account = session.scalars(select(Account).limit(1)).one()
        account.name = "Never"
        session.flush()
        raise refused
    with office.database.reading() as session:
        assert "Never" not in session.scalars(select(Account.name)).all()
    told = office.told()[-1]
    assert (told.action, told.outcome, told.target_id, told.target_name) == ("key_deleted", "refused", "key_1", "A key")
    assert told.details == {"why": 1, "reason": "Not you."}
    assert (told.actor_id, told.actor_name, told.means) == (actor.public_id, "Rio Tanaka", Means.SESSION)
    assert (told.address, told.request_id, told.at) == ("203.0.113.7", "req_1", NOON)


@pytest.mark.parametrize("error", [Conflict("No attempt"), ValueError("no error of ours")])
def test_what_is_no_attempt_is_not_told(shared_office: Office, error: Exception) -> None:
    before = len(shared_office.told())
    with pytest.raises(type(error)), audit.transaction(shared_office.database, shared_office.actor("rio")):
        raise error
    assert len(shared_office.told()) == before


@pytest.mark.parametrize(
    "odd", ["\x00", "a\x00b", "\ud800", "\u202ehidden", "line\nline", "x" * 100_000, "key_" + "x" * 100, "💥" * 300]
)
def test_whatever_a_refused_attempt_held_can_be_told(shared_office: Office, odd: str) -> None:
    attempt = Attempt(Event.KEY_GENERATED, odd, odd, {"scopes": [odd[:100]], odd[:100]: odd[:100]})
    with pytest.raises(PortalError), audit.transaction(shared_office.database, shared_office.actor("rio")):
        raise Forbidden(odd, attempt=attempt)
    told = shared_office.told(outcome="refused")[-1]
    assert len(told.target_id or "") <= 40
    assert len(told.target_name) <= 254
    assert "\x00" not in told.target_name


def test_rows_name_people_and_things_by_value_and_so_outlive_them(office: Office) -> None:
    assert not AuditEvent.__table__.foreign_keys


def test_a_command_is_told_as_one(office: Office) -> None:
    def record(**more: Any) -> AuditEvent:
        with office.database.transaction() as session:
            audit.record(session, operator(), Event.KEY_DELETED, target_id="key_1", **more)
        return office.told()[-1]

    told = record(workspace_id=office.member("zoe").workspace_id)
    assert (told.means, told.actor_name, told.actor_id, told.address) == (Means.COMMAND, "operator", None, None)
    assert told.workspace_id == office.member("zoe").workspace_id
    assert record().workspace_id is None


def test_event_names_are_stable_words() -> None:
    assert all(str(event).replace("_", "").isalpha() and str(event).islower() for event in Event)
    assert max(map(len, Event)) <= 40


# --- The check ------------------------------------------------------------------------------------------------------


def verdict(office: Office) -> audit_reading.ChainVerdict:
    with office.database.reading() as session:
        return audit_reading.verify(session, office.member("ana").workspace_id)


@pytest.mark.parametrize(
    ("column", "value"), [("at", "soon"), ("details", "{"), ("seq", "last"), ("means", b"session")]
)
def test_a_row_that_cannot_even_be_read_is_named(column: str, value: Any, office: Office) -> None:
    """SQLite keeps any value in any column; PostgreSQL would have none of these."""
    if not office.database.is_sqlite:
        column, value = "address", "203.0.113.99"
    office.generate("rio")
    chain = office.member("ana").workspace_id
    with office.database.transaction() as session:
        mine = select(AuditEvent.public_id, AuditEvent.seq).where(AuditEvent.chain == chain)
        before, named = session.execute(mine.order_by(AuditEvent.seq.desc()).limit(2).offset(1)).all()[::-1]
        session.execute(
            text(f"UPDATE audit_event SET {column} = :value WHERE public_id = :id"), {"value": value, "id": named[0]}
        )
    found = verdict(office)
    assert not found.holds
    assert found.count >= before.seq
    assert found.broken in (named[0], before[0])


@pytest.mark.parametrize("where", [{"seq": -1}, {"seq": 0}, {"chain": 4711}])
@pytest.mark.parametrize("of", ["a workspace", "signing in"])
def test_a_row_beside_the_chain_is_named_and_shown_nowhere(of: str, where: dict[str, int], office: Office) -> None:
    key, _ = office.generate("rio")
    chain = office.member("ana").workspace_id if of == "a workspace" else 0
    names = [column.key for column in AuditEvent.__table__.c if column.key != "id"]
    with office.database.transaction() as session:
        if not chain:
            audit.record(session, Actor(NOON, Means.SESSION, "visitor"), Event.SIGNED_IN, target_id=key.id)
    with office.database.transaction() as session:
        assert audit_reading.verify(session, chain).holds
        mine = select(AuditEvent).where(AuditEvent.chain == chain, AuditEvent.target_id == key.id)
        found = session.scalars(mine).one()
        values = {name: getattr(found, name) for name in names} | {"public_id": "evt_forged"} | where
        session.execute(insert(AuditEvent).values(**values))
    with office.database.reading() as session:
        verdict = audit_reading.verify(session, chain)
        assert (verdict.holds, verdict.count) == (False, found.seq)
        assert "evt_forged" in verdict.reason
        assert len(audit_reading.history_of(session, office.member("ana").workspace_id, key.id)) == 1
        page = audit_views.list_for(session, office.seat("ana"), Filters(), size=500)
        assert "evt_forged" not in [event.public_id for event in page.events]


def test_a_log_that_is_gone_is_not_whole(office: Office) -> None:
    chain = office.member("ana").workspace_id
    assert verdict(office).holds
    with office.database.transaction() as session:
        session.execute(delete(AuditEvent).where(AuditEvent.chain == chain))
        session.execute(delete(AuditHead).where(AuditHead.chain == chain))
    assert verdict(office).reason == "every row is missing"


def test_a_name_is_kept_as_it_was_typed_but_for_what_no_name_may_hold(office: Office) -> None:
    persian, family = "می\u200cخواهم", "\U0001f469\u200d\U0001f467"
    with office.database.transaction() as session:
        for name in (persian, family, "a\x00b\u202ec\ud800"):
            audit.record(session, office.actor("ana"), Event.SOLUTION_ADDED, target_name=name)
    with office.database.transaction() as session:
        names = session.scalars(select(AuditEvent.target_name).order_by(AuditEvent.seq.desc()).limit(3)).all()
    assert names[::-1] == [persian, family, "a\ufffdb\ufffdc\ufffd"]


def test_an_export_of_sign_ins_goes_to_their_end_not_to_that_of_the_workspace(office: Office) -> None:
    zoe, visitor = office.seat("zoe"), Actor(NOON, Means.SESSION, "visitor")
    with office.database.transaction() as session:
        account = session.get_one(Account, zoe.member.account_id)
        for _ in range(200):
            audit.record(session, visitor, Event.SIGNED_IN, target_id=account.public_id)
    filters = Filters(is_sign_ins=True)
    with office.database.transaction() as session, pytest.raises(Forbidden):  # also where no page stands before it
        audit_views.begin_export(session, office.actor("lea"), office.seat("lea"), filters, "csv")
    with office.database.transaction() as session:
        last = audit_views.begin_export(session, office.actor("zoe"), zoe, filters, "csv")
    assert sum(map(len, audit_views.export(office.database, zoe, filters, last))) == 200
