"""When keys were last used: written soon, seldom, and not lost (T-19, T-64, T-65)."""

import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import text

from portal.rules.credentials import Keyring, Pepper, PlainKey
from portal.rules.errors import KeyRefused
from portal.services import keys
from portal.services.key_check import Caller
from portal.services.usage import Usage
from tests.services.office import NOON, RING, Office, at_once

SECOND = timedelta(seconds=1)


@pytest.fixture
def usage(office: Office) -> Iterator[Usage]:
    usage = Usage(office.database)
    yield usage
    usage.close()


class Used:
    """A key and what its row says of its use."""

    def __init__(self, office: Office, name: str = "Nightly export") -> None:
        self.office = office
        view, self.plain = office.generate("rio", name=name)
        self.id = view.id

    def note(self, usage: Usage, at: datetime, client: str = "curl/8.5") -> None:
        usage.note(self.office.check(self.plain), at, "203.0.113.9", client)

    @property
    def at(self) -> datetime | None:
        return self.office.row(self.id).last_used_at


@pytest.fixture
def key(office: Office) -> Used:
    return Used(office)


def test_use_is_written_within_seconds_by_itself(usage: Usage, key: Used) -> None:
    now = datetime.now(UTC)
    key.note(usage, now)
    give_up = time.monotonic() + 10
    while key.at is None and time.monotonic() < give_up:
        time.sleep(0.05)
    row = key.office.row(key.id)
    assert (row.last_used_at, row.last_used_address, row.last_used_client) == (now, "203.0.113.9", "curl/8.5")


def test_a_row_is_written_at_most_once_in_ten_seconds(usage: Usage, key: Used) -> None:
    written = []
    for second in range(25):
        key.note(usage, NOON + second * SECOND)
        usage.flush(everything=False)
        written.append(key.at)
    changes = [at for before, at in zip([None, *written], written, strict=False) if at != before]
    assert changes == [NOON, NOON + 10 * SECOND, NOON + 20 * SECOND]


def test_several_processes_together_write_a_row_at_most_once_in_ten_seconds(
    office: Office, usage: Usage, key: Used
) -> None:
    other = Usage(office.database)
    key.note(usage, NOON)
    usage.flush(everything=False)
    key.note(other, NOON + SECOND)
    other.flush(everything=False)
    assert key.at == NOON
    other.close()
    assert key.at == NOON + SECOND  # at the end nothing is kept back


def test_everything_is_written_when_a_process_ends(usage: Usage, key: Used) -> None:
    key.note(usage, NOON)
    usage.flush()
    key.note(usage, NOON + SECOND)
    usage.close()
    assert key.at == NOON + SECOND


def test_a_late_note_does_not_turn_the_time_back(office: Office, usage: Usage, key: Used) -> None:
    late = Usage(office.database)
    key.note(late, NOON)
    key.note(usage, NOON + SECOND, "python-requests/2.32")
    usage.flush()
    late.close()
    assert key.at == NOON + SECOND
    assert office.row(key.id).last_used_client == "python-requests/2.32"


def test_keys_that_were_not_used_are_left_alone(office: Office, usage: Usage, key: Used) -> None:
    unused = Used(office, "Unused")
    key.note(usage, NOON)
    usage.flush()
    assert (key.at, unused.at) == (NOON, None)


def test_many_keys_used_at_once_are_all_written(office: Office, usage: Usage) -> None:
    used = [Used(office, f"Key {n}") for n in range(8)]
    callers = [office.check(each.plain) for each in used]

    def note(caller: Caller) -> None:
        for second in range(50):
            usage.note(caller, NOON + second * SECOND, None, "curl/8.5")

    assert set(at_once({caller.key_id: partial(note, caller) for caller in callers}).values()) == {None}
    usage.flush()
    assert {each.at for each in used} == {NOON + 49 * SECOND}


def test_what_could_not_be_written_is_kept_for_the_next_try_and_raises_nothing(
    office: Office, usage: Usage, key: Used, caplog: pytest.LogCaptureFixture
) -> None:
    caller = office.check(key.plain)

    def rename(old: str, new: str) -> None:
        with office.database.transaction() as session:
            session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    rename("api_key", "elsewhere")
    usage.note(caller, NOON, None, "curl/8.5")
    with caplog.at_level(logging.ERROR):
        usage.flush()
    assert "usage could not be written" in caplog.text
    rename("elsewhere", "api_key")
    usage.flush()
    assert key.at == NOON


def test_a_key_that_was_deleted_meanwhile_stays_deleted(office: Office, usage: Usage, key: Used) -> None:
    key.note(usage, NOON)
    office.act("rio", keys.delete, key.id, typed="Nightly export")
    usage.flush()
    assert office.row(key.id).revoked_at == NOON
    with pytest.raises(KeyRefused):
        office.check(key.plain)


def test_a_key_in_use_moves_to_the_newest_pepper_with_the_flush_and_the_old_one_can_be_retired(office: Office) -> None:
    newest, old = Pepper("newest", b"n" * 32), RING.peppers[0]
    _, plain = office.generate("rio")
    _, resting = office.generate("rio", name="Not in use")
    moving = Office(office.database, Keyring(RING.format, (newest, old)))
    usage = Usage(office.database)
    caller = moving.check(plain)
    assert stored(office, caller.key_id) == (old.digest(plain), old.id)  # the check itself writes nothing
    usage.note(caller, NOON, None, "curl/8.5")
    usage.close()
    assert stored(office, caller.key_id) == (newest.digest(plain), "newest")
    assert moving.check(plain).new_digest is None

    retired = Office(office.database, Keyring(RING.format, (newest,)))
    assert retired.check(plain).key_id == caller.key_id
    for refusing, key in ((office, plain), (retired, resting)):
        with pytest.raises(KeyRefused):
            refusing.check(key)
    for each in (moving, retired):
        each.close()


def stored(office: Office, key_id: str) -> tuple[bytes, str]:
    row = office.row(key_id)
    return row.digest, row.pepper_id


def test_a_key_never_used_says_so(office: Office) -> None:
    view, plain = office.generate("rio")
    assert isinstance(plain, PlainKey)
    assert (view.last_used_at, view.last_used_address, view.last_used_client, view.is_busy) == (None, None, None, False)
