"""Which key is this? Told to those who may see it, to all others what a key that never was gets."""

from datetime import timedelta

import pytest

from portal.rules.credentials import Keyring, Pepper
from portal.rules.errors import Invalid, TooManyAttempts
from portal.services import audit, identify, keys
from portal.services.key_views import KeyView
from tests.services.office import API_MEMBER, NOON, RING, Office


def ask(office: Office, who: str, pasted: str, at: timedelta = timedelta()) -> KeyView | None:
    actor = office.actor(who, NOON + at)
    with audit.transaction(office.database, actor) as session:
        return identify.identify(session, actor, office.seat(who), office.keyring, pasted)


def test_a_key_is_named_to_those_who_may_see_it_and_to_nobody_else(office: Office) -> None:
    key, plain = office.generate("rio")
    found = {who: ask(office, who, plain.reveal()) for who in ("rio", "ana", "lea", "max", "zoe")}
    assert {who: view.id if view else None for who, view in found.items()} == {
        "rio": key.id, "ana": key.id, "lea": None, "max": None, "zoe": None,
    }  # fmt: skip
    _, plain = office.generate("lea", owner=API_MEMBER)
    assert [bool(ask(office, who, plain.reveal())) for who in ("lea", "ana", "rio")] == [True, True, False]


def test_a_deleted_key_and_one_under_an_older_pepper_are_named_too(office: Office) -> None:
    key, plain = office.generate("rio")
    office.act("rio", keys.delete, key.id, typed="")
    newer = Office(office.database, Keyring(RING.format, (Pepper("newest", b"n" * 32), *RING.peppers)))
    found = ask(newer, "rio", plain.reveal())
    assert found
    assert found.id == key.id


def test_the_key_may_stand_anywhere_in_what_was_pasted(office: Office) -> None:
    key, plain = office.generate("rio")
    text = plain.reveal()
    mistyped = text[:-1] + ("a" if text[-1] != "a" else "b")
    for around in ("{}", "Authorization: Bearer {}\n", "  '{}',", "API_KEY={} # prod", f"OLD={mistyped}\nNEW={{}}"):
        found = ask(office, "rio", around.format(text))
        assert found
        assert found.id == key.id


@pytest.mark.parametrize("pasted", ["", "x", "sk_live_", "\x00" * 99, "%", "x" * 50_000])
def test_what_is_no_key_is_refused_and_not_written_down(office: Office, pasted: str) -> None:
    with pytest.raises(Invalid):
        ask(office, "rio", pasted)
    assert office.told() == []


def test_a_mistyped_key_is_refused(office: Office) -> None:
    _, plain = office.generate("rio")
    text = plain.reveal()
    with pytest.raises(Invalid):
        ask(office, "rio", text[:-1] + ("a" if text[-1] != "a" else "b"))


def test_questions_are_told_without_the_text_and_limited(office: Office) -> None:
    key, plain = office.generate("rio")
    _, foreign = office.generate("max")
    for n in range(identify.LIMIT):
        ask(office, "rio", (plain if n % 2 else foreign).reveal(), timedelta(seconds=n))
    told = office.told(action="key_identified")
    assert len(told) == 20
    assert {event.target_id for event in told} == {key.id, None}
    stored = repr([(event.target_name, event.details) for event in told])
    assert plain.reveal()[10:40] not in stored
    assert foreign.reveal()[10:40] not in stored
    for _ in range(2):  # who asks on does not wait longer for it
        with pytest.raises(TooManyAttempts) as limited:
            ask(office, "rio", plain.reveal(), timedelta(minutes=1))
    assert limited.value.retry_at == NOON + identify.WINDOW
    assert ask(office, "ana", plain.reveal(), timedelta(minutes=1))  # each has their own
    assert ask(office, "rio", plain.reveal(), identify.WINDOW + timedelta(seconds=30))
