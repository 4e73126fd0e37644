"""A database recognises the secrets that its keys were hashed under."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from portal.rules.credentials import KeyFormat, Keyring, Pepper
from portal.services import peppers
from portal.store.database import Database
from tests.services.office import RING, Office

WRONG = Keyring(KeyFormat(), (Pepper("new", b"another secret of these tests..."),))


def noted(database: Database, ring: Keyring) -> list[str]:
    """Start with these secrets; give those that are wrong."""
    with database.transaction() as session:
        return list(peppers.note(session, ring))


def test_another_secret_is_told_once_keys_were_hashed(office: Office) -> None:
    assert noted(office.database, RING) == []
    office.generate("rio")
    assert noted(office.database, WRONG) == ["new"]
    assert noted(office.database, RING) == []


def test_a_secret_under_which_nothing_was_hashed_may_be_put_right(office: Office) -> None:
    assert noted(office.database, WRONG) == []
    assert noted(office.database, RING) == []
    office.generate("rio")
    assert noted(office.database, WRONG) == ["new"]


def test_hosts_that_start_together_note_the_same(office: Office) -> None:
    with ThreadPoolExecutor(1) as pool:
        with office.database.transaction() as session:
            peppers.note(session, RING)
            session.flush()
            other = pool.submit(noted, office.database, RING)
            with suppress(TimeoutError):
                other.result(0.2)  # it waits for what is not committed yet
        assert other.result() == []
