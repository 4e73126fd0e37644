"""What happens behind the screen: keys that are old or in use, proofs that have lapsed, sessions that have ended."""

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, update

from portal.services import audit, rotation
from portal.store.models import Account, ApiKey, Usage, UserSession
from tests.browser.acting import email_of
from tests.services.office import Office


class Backstage(Office):
    """The services' office on the live server's database. Its keys have texts that this server does not know."""

    def key(self, owner: str, name: str, *, creator: str = "", age: timedelta = timedelta(), **answers: Any) -> str:
        """Generate a key as it was so long ago; give its id."""
        view, _ = self.generate(creator or owner, owner=owner, at=datetime.now(UTC) - age, name=name, **answers)
        return view.id

    def keep_busy(self, key_id: str) -> None:
        """Let a program use a key three minutes ago."""
        at = datetime.now(UTC) - timedelta(minutes=3)
        self.use(key_id, at, address="203.0.113.7", client="python-requests/2.32")

    def rotate(self, key_id: str, owner: str, *, age: timedelta = timedelta(), **answers: Any) -> str:
        """Rotate a key as its owner did so long ago; give the new one's id."""
        actor = self.actor(owner, datetime.now(UTC) - age)
        with audit.transaction(self.database, actor) as session:
            draft = rotation.draft_rotation(session, actor, self.seat(owner), key_id)
            view, _ = rotation.rotate(session, actor, self.keyring, replace(draft, **answers))
        return view.id

    def wait_for_use(self, name: str, times: int = 1) -> None:
        """Wait until the server has written down that keys of a name were used so often; it does so every second."""
        uses = select(func.sum(Usage.count)).join(ApiKey, ApiKey.id == Usage.key_id).where(ApiKey.name == name)
        give_up = time.monotonic() + 20
        while time.monotonic() < give_up:
            with self.database.reading() as session:
                if (session.scalar(uses) or 0) >= times:
                    return
            time.sleep(0.1)
        raise AssertionError(f"no use of {name} was written down")

    def prefer(self, person: str, **preferences: Any) -> None:
        """Let somebody have other preferences."""
        with self.database.transaction() as session:
            session.execute(update(Account).where(Account.email == email_of(person)).values(preferences))

    def find(self, name: str) -> ApiKey:
        """Read what is stored of a key, by its name."""
        with self.database.reading() as session:
            return session.scalars(select(ApiKey).where(ApiKey.name == name)).one()

    def lapse(self, person: str) -> None:
        """Let the password that somebody gave last be more than ten minutes ago; the latest session only."""
        at = datetime.now(UTC) - timedelta(minutes=11)
        with self.database.transaction() as session:
            session.execute(update(UserSession).where(UserSession.id == self._latest(person)).values(proved_at=at))

    def end_session(self, person: str) -> None:
        """End somebody's latest session, as signing out elsewhere does."""
        with self.database.transaction() as session:
            session.execute(delete(UserSession).where(UserSession.id == self._latest(person)))

    def _latest(self, person: str) -> Any:
        return (
            select(func.max(UserSession.id))
            .join(Account, Account.id == UserSession.account_id)
            .where(Account.email == email_of(person))
            .scalar_subquery()
        )
