"""Who hears of which key's expiry, when, and how often."""

from datetime import datetime, timedelta

import pytest
from sqlalchemy import event, select

from portal.mail import Letter, Mailer, NeverTaken
from portal.rules.access import AccessLevel
from portal.rules.lifetimes import Lifetime
from portal.services import keys, notices, outbox
from portal.services.keys import KEYS_PER_MEMBER
from portal.store.models import ExpiryNotice, OutgoingMail
from tests.services.office import API_MEMBER, NOON, Office, at_once

URL = "https://keys.example.org"
EXPIRY = NOON + timedelta(days=90)


def days_before(days: float) -> datetime:
    """Give a moment that is so many days before the usual key's expiry."""
    return EXPIRY - timedelta(days=days)


def notify(office: Office, at: datetime) -> list[OutgoingMail]:
    """Write what is due at a moment; give what waits in the outbox, and empty that."""
    with office.database.transaction() as session:
        notices.write_due(session, at, office.keyring, URL)
    with office.database.transaction() as session:
        waiting = list(session.scalars(select(OutgoingMail).order_by(OutgoingMail.id)))
        for letter in waiting:
            session.delete(letter)
    return waiting


class Postman(Mailer):
    """Keeps what it is given; refuses while it is on strike."""

    def __init__(self) -> None:
        super().__init__("keys@example.org")
        self.letters: list[Letter] = []
        self.on_strike = False

    def send(self, letter: Letter) -> None:
        if self.on_strike:
            raise OSError("on strike")
        self.letters.append(letter)


def test_the_owner_hears_30_and_7_and_1_days_ahead_and_once_each(office: Office) -> None:
    office.generate("max")
    heard = {}
    for days in (31, 30, 29, 8, 7, 6.9, 2, 1, 0.5, 0):
        heard[days] = [letter.recipient for letter in notify(office, days_before(days))]
    max_once = ["max@acme.test"]
    assert heard == {31: [], 30: max_once, 29: [], 8: [], 7: max_once, 6.9: [], 2: [], 1: max_once, 0.5: [], 0: []}


def test_whoever_hears_late_hears_once_and_of_the_most_urgent(office: Office) -> None:
    office.generate("max")
    assert len(notify(office, days_before(0.5))) == 1
    assert notify(office, days_before(0.4)) == []


def test_a_key_for_30_days_is_not_told_of_at_its_birth(office: Office) -> None:
    office.generate("max", expires=Lifetime.DAYS_30)
    assert notify(office, NOON) == []
    assert notify(office, NOON + timedelta(days=1)) == []
    assert len(notify(office, NOON + timedelta(days=23))) == 1


def test_one_mail_tells_of_all_keys_of_a_person_soonest_first(office: Office) -> None:
    office.generate("max", name="Later", at=NOON + timedelta(days=1), scopes=["leads:read"])
    office.generate("max", name="Sooner", scopes=["leads:read"], note="billing-sync")
    [letter] = notify(office, days_before(7))
    assert letter.subject == "2 keys in Acme expire, the first in 7 days"
    assert letter.body.index("Sooner") < letter.body.index("Later")
    assert "billing-sync" in letter.body
    assert EXPIRY.strftime("%Y-%m-%dT%H:%M:%SZ") in letter.body


def test_the_mail_names_the_key_and_leads_to_its_rotation(office: Office) -> None:
    key, plain = office.generate("max", name="CRM sync")
    [letter] = notify(office, days_before(7))
    assert letter.subject == "“CRM sync” in Acme expires in 7 days"
    assert key.hint in letter.body
    assert f"{URL}/w/acme/api/keys/{key.id}/rotate" in letter.body
    assert plain.reveal() not in letter.body


def test_of_an_api_members_key_its_manager_hears(office: Office) -> None:
    office.generate("lea", owner=API_MEMBER)
    [letter] = notify(office, days_before(7))
    assert letter.recipient == "lea@acme.test"
    assert "Nightly sync, API member" in letter.body


def test_when_the_manager_has_left_the_administrators_hear(office: Office) -> None:
    office.generate("lea", owner=API_MEMBER)
    office.change("lea", removed_at=NOON)
    assert [letter.recipient for letter in notify(office, days_before(7))] == ["ana@acme.test"]


@pytest.mark.parametrize("what", [keys.deactivate, keys.delete])
def test_nobody_hears_of_a_key_that_was_stopped(office: Office, what: object) -> None:
    key, _ = office.generate("max")
    more = {"typed": ""} if what is keys.delete else {}
    office.act("max", what, key.id, **more)  # type: ignore[arg-type]
    assert notify(office, days_before(7)) == []


def test_nobody_hears_of_the_key_of_somebody_who_left(office: Office) -> None:
    office.generate("max")
    office.change("max", deactivated_at=NOON)
    assert notify(office, days_before(7)) == []


def test_keys_that_never_expire_are_never_told_of(office: Office) -> None:
    office.generate("max", expires=Lifetime.NEVER)
    assert notify(office, days_before(0.1)) == []


def test_a_notice_that_was_rolled_back_is_told_later_and_nothing_is_sent(office: Office) -> None:
    office.generate("max")
    with pytest.raises(RuntimeError), office.database.transaction() as session:
        notices.write_due(session, days_before(7), office.keyring, URL)
        raise RuntimeError("the machine fails before the commit")
    postman = Postman()
    assert outbox.send_waiting(office.database, postman, lambda: days_before(7)) == (0, [])
    assert len(notify(office, days_before(7))) == 1


def test_a_mail_that_was_not_taken_waits_for_the_next_run_under_the_same_id(office: Office) -> None:
    office.generate("max")
    with office.database.transaction() as session:
        notices.write_due(session, days_before(7), office.keyring, URL)
    postman = Postman()
    postman.on_strike = True
    sent, failed = outbox.send_waiting(office.database, postman, lambda: days_before(7))
    assert (sent, len(failed)) == (0, 1)
    with office.database.reading() as session:
        [waiting] = session.scalars(select(OutgoingMail)).all()
    postman.on_strike = False
    assert outbox.send_waiting(office.database, postman, lambda: days_before(6.9)) == (1, [])
    assert outbox.send_waiting(office.database, postman, lambda: days_before(6.8)) == (0, [])
    assert [letter.id for letter in postman.letters] == [waiting.public_id]


def test_a_mail_that_is_not_taken_is_tried_after_pauses_that_grow_and_given_up_after_days(office: Office) -> None:
    with office.database.transaction() as session:
        outbox.put(session, NOON, "max@acme.test", "Hello", "…")
    postman = Postman()
    postman.on_strike = True
    tries: list[int] = []
    last: list[str] = []
    for minutes in (*range(60), *range(60, 4 * 24 * 60, 20)):  # as often as a worker looks, and less often later
        _, failed = outbox.send_waiting(office.database, postman, lambda now=minutes: NOON + timedelta(minutes=now))  # type: ignore[misc]
        if failed:
            tries, last = [*tries, minutes], failed
    assert tries[:5] == [0, 2, 5, 11, 23]  # a minute after each is due
    assert 3 * 24 * 60 <= tries[-1] < 3.5 * 24 * 60
    assert last == ["max@acme.test: on strike (dropped)"]


def test_a_mail_that_is_refused_for_good_is_dropped_at_once(office: Office) -> None:
    class Strict(Postman):
        def send(self, letter: Letter) -> None:
            raise NeverTaken("550 no such user")

    with office.database.transaction() as session:
        outbox.put(session, NOON, "bad@acme.test", "Hello", "…")
    refused = (0, ["bad@acme.test: 550 no such user (dropped)"])
    assert outbox.send_waiting(office.database, Strict(), lambda: NOON) == refused
    assert outbox.send_waiting(office.database, Strict(), lambda: NOON + timedelta(days=1)) == (0, [])


def test_new_mails_go_before_those_that_failed_and_the_newest_first(office: Office) -> None:
    postman = Postman()
    postman.on_strike = True

    def put(subject: str) -> None:
        with office.database.transaction() as session:
            outbox.put(session, NOON, "max@acme.test", subject, "…")

    put("failed")
    outbox.send_waiting(office.database, postman, lambda: NOON)
    postman.on_strike = False
    put("older")
    put("newest")
    assert outbox.send_waiting(office.database, postman, lambda: NOON + timedelta(hours=1)) == (3, [])
    assert [letter.subject for letter in postman.letters] == ["newest", "older", "failed"]


def test_a_mail_that_another_sender_has_claimed_is_left_to_it_for_ten_minutes(office: Office) -> None:
    at = days_before(7)
    with office.database.transaction() as session:
        outbox.put(session, at, "max@acme.test", "Hello", "…")
        session.flush()
        session.scalars(select(OutgoingMail)).one().claimed_at = at
    postman = Postman()
    assert outbox.send_waiting(office.database, postman, lambda: at + timedelta(minutes=9)) == (0, [])
    assert outbox.send_waiting(office.database, postman, lambda: at + timedelta(minutes=11)) == (1, [])


def test_a_run_may_take_longer_than_a_claim_holds(office: Office) -> None:
    at = NOON

    class Slow(Postman):
        def send(self, letter: Letter) -> None:
            nonlocal at
            at += timedelta(minutes=9)
            if letter.subject == "first":  # the older one, which comes after the newer
                assert outbox.send_waiting(office.database, Postman(), lambda: at) == (0, [])
            super().send(letter)

    with office.database.transaction() as session:
        for subject in ("first", "last"):
            outbox.put(session, NOON, "max@acme.test", subject, "…")
    assert outbox.send_waiting(office.database, Slow(), lambda: at) == (2, [])


def test_a_slow_failure_leaves_a_mail_to_whoever_has_claimed_it_since(office: Office) -> None:
    at, others = NOON, Postman()

    class Late(Postman):
        def send(self, letter: Letter) -> None:
            nonlocal at
            at += timedelta(minutes=11)
            with office.database.transaction() as session:  # another run is sending it now
                session.scalars(select(OutgoingMail)).one().claimed_at = at
            raise OSError("no answer")

    with office.database.transaction() as session:
        outbox.put(session, NOON, "max@acme.test", "Hello", "…")
    assert outbox.send_waiting(office.database, Late(), lambda: at)[0] == 0
    assert outbox.send_waiting(office.database, others, lambda: at) == (0, [])


def test_runs_side_by_side_tell_once(office: Office) -> None:
    for number in range(KEYS_PER_MEMBER):
        office.generate("max", name=f"Key {number}")

    def run() -> tuple[int, int]:
        with office.database.transaction() as session:
            return notices.write_due(session, days_before(7), office.keyring, URL)

    assert sorted(at_once({"one": run, "other": run}).values()) == [(0, 0), (1, KEYS_PER_MEMBER)]  # type: ignore[type-var]
    with office.database.reading() as session:
        assert len(session.scalars(select(ExpiryNotice)).all()) == KEYS_PER_MEMBER


def test_no_statement_grows_with_the_keys_that_expire(office: Office) -> None:
    """PostgreSQL takes 65,535 parameters: with one a key, from there on nobody would hear of any."""
    for number in range(KEYS_PER_MEMBER):
        office.generate("max", name=f"Key {number}")
    given: list[int] = []
    event.listen(
        office.database.engine, "before_cursor_execute", lambda *told: given.append(0 if told[5] else len(told[3]))
    )
    assert len(notify(office, days_before(7))) == 1
    assert max(given) < KEYS_PER_MEMBER


def test_a_mail_that_cannot_even_be_written_does_not_stop_the_others(office: Office) -> None:
    class Clumsy(Postman):
        def send(self, letter: Letter) -> None:
            if letter.subject == "bad":
                raise UnicodeEncodeError("ascii", "ä", 0, 1, "unfit")
            super().send(letter)

    with office.database.transaction() as session:
        for subject in ("bad", "good"):
            outbox.put(session, NOON, "max@acme.test", subject, "…")
    clumsy = Clumsy()
    sent, failed = outbox.send_waiting(office.database, clumsy, lambda: NOON)
    assert (sent, len(failed)) == (1, 1)
    assert [letter.subject for letter in clumsy.letters] == ["good"]


def test_a_manager_who_is_no_lead_any_more_does_not_hear_and_the_administrators_do(office: Office) -> None:
    office.generate("lea", owner=API_MEMBER)
    office.grant("lea", "operations", AccessLevel.READ)
    assert [letter.recipient for letter in notify(office, days_before(7))] == ["ana@acme.test"]
