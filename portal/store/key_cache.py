"""Records of keys kept in a process, each as new as the database's last commit; and which texts are no key's.

Before each use the cache asks for the news: which keys changed (`store.key_log`, where the proof is that no commit is
missed). It drops those. A record is read from the database after the news, so a change that it does not show was
committed later, and the next news tell of it. If the question for the next news was on its way by then, the news after
those do.

That there is no key under a digest is kept likewise, until anything at all changes: an integration that goes on and on
with a key of another instance, say, costs the database next to nothing.

What time alone changes (expiry, the end of an overlap) must be judged by whoever uses a record.
"""

from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from portal.store.key_log import Change, KeyLog

_KEPT = 10_000  # records, of about 1.3 kB each; and as many digests without a key


class Kept(Protocol):
    """What is kept of a key."""

    @property
    def key_pk(self) -> int:
        """Whose record this is."""

    @property
    def member_pk(self) -> int:
        """Whose key it is."""


R = TypeVar("R", bound=Kept)


class KeyCache(Generic[R]):
    """The records that are kept beside the connection of a log; one thread at a time."""

    def __init__(self, log: KeyLog) -> None:
        self._log = log
        self._records: dict[bytes, R] = {}  # by digest
        self._digests: dict[int, bytes] = {}  # by key
        self._absent: set[bytes] = set()  # digests without a key

    def find(self, digests: Iterable[bytes]) -> R | None:
        """Give the record under one of the digests if it is kept and is what the database would say now."""
        try:
            news = self._log.news()
            if news is None:
                self._drop_all()
            elif news:
                self._absent.clear()
                self._follow(news)
        except BaseException:  # news that were told and not followed, for want of memory, are never told again
            self._drop_all()
            raise
        for digest in digests:
            if (record := self._records.get(digest)) and self._log.covers(record.key_pk):
                return record
        return None

    def is_absent(self, digest: bytes) -> bool:
        """Say, after `find` found nothing, whether there is no key under a digest now, as the database would say."""
        return digest in self._absent and self._log.covers(None)

    def keep_absent(self, digest: bytes) -> None:
        """Keep that the database had nothing under a digest, asked after `find` had not found it."""
        if not self._log.is_fit:
            return
        if len(self._absent) >= _KEPT:
            self._absent.clear()
        self._absent.add(digest)

    def keep(self, digest: bytes, record: R) -> None:
        """Keep what was read after `find` had not found it."""
        if not self._log.is_fit:
            return
        if replaced := self._records.get(digest):
            self._drop(replaced.key_pk)
        self._drop(record.key_pk)  # what was kept of it under the digest of another pepper
        if len(self._records) >= _KEPT:
            self._drop(next(iter(self._digests)))
        self._digests[record.key_pk] = digest  # first: a record that stands alone would never be dropped
        self._records[digest] = record

    def _follow(self, news: Sequence[Change]) -> None:
        members = set()
        for key, member in news:
            if key is not None:
                self._drop(key)
            elif member is not None:
                members.add(member)
            else:
                self._drop_all()
                return
        if members:
            for record in [each for each in self._records.values() if each.member_pk in members]:
                self._drop(record.key_pk)

    def _drop_all(self) -> None:
        self._absent.clear()
        self._records.clear()
        self._digests.clear()

    def _drop(self, key: int) -> None:
        if (digest := self._digests.pop(key, None)) is not None:
            self._records.pop(digest, None)
