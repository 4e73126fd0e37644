"""What happens behind the screen: keys that are old or in use, proofs that have lapsed, sessions that have ended."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, update

from portal.store.models import Account, ApiKey, UserSession
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
