"""The parts of a running portal."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event

from portal.services.key_check import KeyCheck
from portal.services.outage import Outage
from portal.services.rate_limit import BadKeys, RateLimit
from portal.services.readiness import Readiness
from portal.services.usage import Usage
from portal.settings import Settings
from portal.store.database import Database
from portal.store.replica import Replica


@dataclass(frozen=True, slots=True)
class Portal:
    """What a running portal is made of; one per application."""

    settings: Settings
    database: Database
    key_check: KeyCheck
    usage: Usage
    rate_limit: RateLimit
    readiness: Readiness
    replica: Replica | None = None
    bad_verifiers: BadKeys = field(default_factory=BadKeys)
    unreadable: Outage = field(default_factory=lambda: Outage("nothing can be read: the database cannot be asked"))
    unwritable: Outage = field(default_factory=lambda: Outage("nothing can be changed: the database cannot be asked"))
    use_unreadable: Outage = field(default_factory=lambda: Outage("what keys did cannot be read; pages go on without"))
    # Work for after the answer: nobody need wait for it, or the time that it takes would give something away.
    errands: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "errands"))
    # Mails have a thread of their own: a mail server may take minutes, and what is to be written must not wait for it.
    post: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "post"))
    post_is_asked: Event = field(default_factory=Event)  # to look for mails that wait, and has not begun to

    def close(self) -> None:
        """Write down what is still only in memory and give the connections back."""
        self.errands.shutdown()
        self.post.shutdown()  # after the mail that is on its way
        self.usage.close()
        self.rate_limit.close()
        self.key_check.close()
        self.readiness.close()
        if self.replica:
            self.replica.close()
        self.database.close()
