"""Rates of one's own: an administrator sets them for a key, and its successors keep them."""

from typing import Any

import pytest
from sqlalchemy import select, update

from portal.store.database import Database
from portal.store.models import ApiKey, AuditEvent, UserSession
from tests.cast import Cast, MadeKey
from tests.web.looking import kept


@pytest.fixture(scope="module")
def key(cast: Cast) -> MadeKey:
    return cast.lea.generate(name="Busy", self_rotate="yes")


def rates(database: Database, key: MadeKey) -> tuple[int | None, int | None]:
    with database.reading() as session:
        row = session.scalars(select(ApiKey).where(ApiKey.public_id == key.id)).one()
    return row.rate_per_minute, row.rate_per_second


def put(cast: Cast, key: MadeKey, minute: str, second: str, **more: Any) -> int:
    answers = {"rate_per_minute": minute, "rate_per_second": second, **more}
    return cast.ana.post(f"keys/{key.id}/rate", answers).status_code


def test_an_administrator_sets_them_and_takes_them_back(cast: Cast, database: Database) -> None:
    key = cast.lea.generate(name="Set and taken back")
    assert "As every key" in cast.lea.get(f"keys/{key.id}").text
    assert put(cast, key, "100000", "5000") == 303
    assert rates(database, key) == (100_000, 5_000)
    page = cast.lea.get(f"keys/{key.id}").text
    assert "At most 100,000 in any 60 seconds and 5,000 in any second" in page
    assert "An administrator set this" in page
    assert "Change rates" not in page
    assert "Change rates" in cast.ana.get(f"keys/{key.id}").text
    assert 'value="100000"' in cast.ana.get(f"keys/{key.id}/rate").text
    assert put(cast, key, "", " 1 ") == 303
    assert rates(database, key) == (None, 1)
    assert put(cast, key, "", "") == 303
    assert rates(database, key) == (None, None)
    with database.reading() as session:
        changes = session.scalars(
            select(AuditEvent).where(AuditEvent.target_id == key.id, AuditEvent.action == "key_rate_changed")
        ).all()
    usual = {"rate_per_minute": None, "rate_per_second": None}
    assert (changes[0].details["before"], changes[0].details["after"]) == (
        usual,
        {"rate_per_minute": 100_000, "rate_per_second": 5_000},
    )
    assert "Requests in any second" in cast.ana.get(f"/w/acme/audit/{changes[0].public_id}").text
    assert "changed how many requests it may send" in cast.lea.get(f"keys/{key.id}/history").text


@pytest.mark.parametrize(
    ("minute", "second"),
    [("0", ""), ("", "0"), ("100001", ""), ("", "5001"), ("-1", ""), ("1.5", ""), ("٣", ""), ("x", "")],
)
def test_other_numbers_are_refused(cast: Cast, key: MadeKey, database: Database, minute: str, second: str) -> None:
    before = kept(database)
    assert put(cast, key, minute, second) == 422
    assert kept(database) == before


def test_nobody_else_may(cast: Cast, key: MadeKey, database: Database) -> None:
    before = kept(database)
    for person, status in ((cast.lea, 403), (cast.max, 404), (cast.zoe, 404)):
        assert person.get(f"/w/acme/api/keys/{key.id}/rate").status_code == status
        assert person.post(f"/w/acme/api/keys/{key.id}/rate", {"rate_per_minute": "5000"}).status_code == status
    assert kept(database) == before


@pytest.mark.both
def test_a_form_that_is_old_changes_nothing(cast: Cast, key: MadeKey, database: Database) -> None:
    assert put(cast, key, "2000", "") == 303
    before = kept(database)
    assert put(cast, key, "3000", "", was_minute="", was_second="") == 409
    assert kept(database) == before


@pytest.mark.both
def test_it_asks_for_the_password(cast: Cast, key: MadeKey, database: Database) -> None:
    with database.transaction() as session:
        proved = session.scalars(select(UserSession.proved_at)).first()
        assert proved
        session.execute(update(UserSession).values(proved_at=proved.replace(year=proved.year - 1)))
    assert put(cast, key, "5000", "") == 403
    with database.transaction() as session:
        session.execute(update(UserSession).values(proved_at=proved))


def test_successors_keep_them(cast: Cast, database: Database) -> None:
    key = cast.lea.generate(name="Followed", self_rotate="yes")
    assert put(cast, key, "7000", "70") == 303
    assert rates(database, cast.lea.rotate(key, overlap="0")) == (7000, 70)
    other = cast.lea.generate(name="Lost")
    assert put(cast, other, "8000", "") == 303
    form = cast.lea.form(name="Lost", replaces=other.id, overlap="0", scopes=["tasks:write"], **{"from": other.id})
    fixed = cast.lea._made(cast.lea.post("keys", form))
    assert rates(database, fixed) == (8000, None)
    assert rates(database, cast.lea.generate(name="Similar", **{"from": other.id})) == (None, None)
