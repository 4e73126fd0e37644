"""The engine, its transactions, and moments. SQLite (WAL) and PostgreSQL behave the same from here up."""

import re
import select
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.adapt import Transformer
from psycopg.conninfo import make_conninfo
from psycopg.errors import _WaitTimeout, error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult
from sqlalchemy import Connection, DateTime, Dialect, Engine, MetaData, Select, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DatabaseError, DataError, IntegrityError, InterfaceError, ProgrammingError, TimeoutError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.types import TypeDecorator

PATIENCE = 5000  # milliseconds that a writer waits for others
_SILENCE = 12.0  # seconds without an answer after which a server hangs: it has its own time-outs before that
_QUICK_SILENCE = 2.0  # where the answer takes a moment or is none: the check of a key, a sign of life
_A_DAY = 86_400.0
MAKES_KEYS = "portal.makes_keys"  # a setting of sessions of ours, for the triggers of `key_log`
_LEFT_ALONE = 1.0  # seconds for which a server that hung is not asked again, so that nobody queues up for it

# What a database that is away, hung, locked or full looks like, through SQLAlchemy or from the driver itself.
TROUBLE: tuple[type[Exception], ...] = (
    DatabaseError,
    InterfaceError,
    TimeoutError,
    sqlite3.DatabaseError,
    psycopg.OperationalError,
    psycopg.InterfaceError,
)

# Mistakes of ours that are database errors too.
MISTAKES: tuple[type[Exception], ...] = (IntegrityError, DataError, ProgrammingError, psycopg.ProgrammingError)


def broken_rule(error: IntegrityError) -> str:
    """Name the unique index or constraint that a write broke, as far as the driver tells."""
    diagnosis = getattr(error.orig, "diag", None)
    return str(getattr(diagnosis, "constraint_name", None) or error.orig)


def lacks_file(error: Exception, database: "Database") -> str | None:
    """Name the file of SQLite that cannot be opened or written, if that is what an error tells."""
    told = str(getattr(error, "orig", error))
    return database.url.database if told.startswith(("attempt to write a readonly", "unable to open")) else None


def out_of_reach(error: Exception) -> bool:
    """Say whether PostgreSQL could not be spoken to at all: what it answers itself has a code."""
    cause = getattr(error, "orig", error)
    return isinstance(cause, psycopg.OperationalError) and cause.sqlstate is None


class _Silent(psycopg.OperationalError):
    """A server that says nothing."""


def is_silent(error: Exception) -> bool:
    """Say whether PostgreSQL takes connections or questions and says nothing, as one that hangs does."""
    return isinstance(getattr(error, "orig", error), _Silent | psycopg.errors.ConnectionTimeout)


class Moment(TypeDecorator[datetime]):
    """An aware UTC moment with microseconds; SQLite, which has no such type, keeps it as sortable text."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive moments: they would be read as somebody's local time."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise TypeError("a moment needs a time zone")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give every moment back in UTC."""
        return None if value is None else _in_utc(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None] | None:
        """Do both steps of reading SQLite's text in one: lists read some hundred moments."""
        if dialect.name != "sqlite":
            return super().result_processor(dialect, coltype)
        return lambda text: None if text is None else _in_utc(datetime.fromisoformat(text))


def _in_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """The tables' common base; constraints have names, because SQLite migrations can only drop named ones."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: Moment}  # noqa: RUF012 - SQLAlchemy reads it once, as a class attribute


def read(session: Session, statement: Select[*tuple[Any, ...]], values: Mapping[str, Any]) -> Sequence[Any]:
    """Read columns with a statement that is made once, whose `bindparam`s are named in `values`.

    It goes past the session's own ways, which make entities and take several times as long.
    """
    session.flush()
    return session.connection().execute(statement, values).all()


class Database:
    """One database: sessions that read, sessions that write, and bare connections for the hot path."""

    def __init__(self, url: str) -> None:
        self.url = checked_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        # Errors are logged, and what was to be written holds one-time links and hashes.
        self.engine = create_engine(self.url, hide_parameters=True, **({} if self.is_sqlite else _POSTGRESQL_OPTIONS))
        writing = self.engine.execution_options()  # with events of its own: on `engine` they would slow down reads
        if self.is_sqlite:
            _prepare_sqlite(self.engine, writing, self.url)
        else:
            _prepare_postgresql(self.engine)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._writing = sessionmaker(writing, expire_on_commit=False)

    @contextmanager
    def transaction(self, *, patience: int = PATIENCE) -> Iterator[Session]:
        """Give a session that writes: committed at the end, rolled back on an error.

        SQLite locks at its start, because a reader that turns writer half-way fails with "database is locked" whatever
        the time-out. `patience` is how many milliseconds to wait for others that write. What a service put into
        `session.info["before_commit"]` is called last of all, with the session.
        """
        with self._writing.begin() as session:
            session.connection(execution_options={"portal_patience": patience})
            yield session
            for finish in session.info.pop("before_commit", ()):
                finish(session)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Give a session that only reads; what it loaded stays usable afterwards."""
        with self._sessions() as session:
            yield session

    @property
    def file_open_to_all(self) -> Path | None:
        """Name the file of a SQLite database that others on this machine may read or write, if it is so."""
        path = Path(str(self.url.database))
        is_open = self.is_sqlite and path.exists() and path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH)
        return path if is_open else None

    def driver_connection(self) -> Any:
        """Open a connection of the driver itself for quick questions, in autocommit; its caller keeps and closes it."""
        pooled = self.engine.raw_connection()
        connection = pooled.driver_connection
        pooled.detach()
        if isinstance(connection, psycopg.Connection):
            connection.autocommit = True
            if isinstance(connection, _Impatient):
                connection.silence = _QUICK_SILENCE
            connection.prepare_threshold = 0  # prepared at first use: a four-table join costs a fifth then
        return connection

    def take_time(self, connection: Connection) -> None:
        """Let the statements of this transaction take as long as they need: for commands that go through all rows."""
        if not self.is_sqlite:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            impatient = connection.connection.driver_connection
            if isinstance(impatient, _Impatient):
                impatient.silence = _A_DAY  # until it is taken from the pool again

    def close(self) -> None:
        """Give all pooled connections back."""
        self.engine.dispose()


_POSTGRESQL_OPTIONS: dict[str, Any] = {
    "pool_pre_ping": True,
    # Whatever is usual in this database: a lock that was waited for shows what was committed until then.
    "connect_args": {
        "connect_timeout": 2,
        # Also who has leave to wait for long finds out within a minute that the network is gone: in seconds while
        # nothing is on its way, in milliseconds while something is.
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,
        "options": "-c statement_timeout=10000 -c lock_timeout=8000 -c default_transaction_isolation=read\\ committed"
        f" -c {MAKES_KEYS}=on",
    },
}


class _Impatient(psycopg.Connection[Any]):
    """A connection that gives up a server which says nothing, as one that was stopped or cut off does.

    `statement_timeout` and `lock_timeout` are the server's, so they help only while it lives.
    """

    silence = _SILENCE
    hush: "_Hush"
    _questions: dict[str, bytes]  # names of prepared statements
    _reader: Any  # makes values of what was answered
    _is_ahead = False  # a question was asked ahead
    _early: PGresult | None = None  # its answer, once another question was asked behind it

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Wait for the server, but not for ever."""
        try:
            return super().wait(gen, interval, timeout or self.silence)
        except _WaitTimeout:
            raise self._give_up() from None

    def ask(self, sql: str, parameters: Sequence[bytes]) -> list[tuple[Any, ...]]:
        """Ask what is asked over and over, with `$1 …` for bytes, prepared at first use; one thread at a time.

        The same protocol as a cursor's, without the cursor: that takes several times as long as libpq.
        """
        if self._is_ahead and self._early is None:
            self._early = self._result()
        self._send(sql, parameters)
        return self._rows(self._result())

    def ask_ahead(self, sql: str, parameters: Sequence[bytes]) -> None:
        """Ask, and do not wait for the answer. `answer` gives it; what is asked meanwhile comes behind it."""
        self._send(sql, parameters)
        self._is_ahead = True

    def answer(self) -> list[tuple[Any, ...]]:
        """Give the answer to what was asked ahead; waits where it has not come yet."""
        self._is_ahead = False
        result, self._early = self._early, None
        if result is None:
            self.pgconn.consume_input()  # it is most likely there: no need to give the interpreter away
            result = self._result()
        return self._rows(result)

    def _send(self, sql: str, parameters: Sequence[bytes]) -> None:
        if not hasattr(self, "_questions"):
            self._questions, self._reader = {}, Transformer(self)
        name = self._questions.get(sql)
        if name is None:
            name = f"question_{len(self._questions)}".encode()
            self.pgconn.send_prepare(name, sql.encode())
            _checked(self._result())
            self._questions[sql] = name
        self.pgconn.send_query_prepared(name, parameters, [Format.BINARY] * len(parameters))

    def _rows(self, result: PGresult) -> list[tuple[Any, ...]]:
        try:
            self._reader.set_pgresult(_checked(result))
        except psycopg.errors.FeatureNotSupported as error:  # prepared before a migration changed a column's type
            raise psycopg.OperationalError("the question must be prepared anew") from error
        rows: list[tuple[Any, ...]] = self._reader.load_rows(0, result.ntuples, tuple)
        return rows

    def _result(self) -> PGresult:
        """Wait for the answer to the one question that was sent, but not for ever."""
        connection, last = self.pgconn, time.monotonic() + self.silence
        poll = select.poll()
        poll.register(connection.socket, select.POLLIN)
        connection.flush()
        result = None
        while True:  # the answer, then that there is no more: libpq would wait for either without an end
            while connection.is_busy():
                if not poll.poll(max(0.0, last - time.monotonic()) * 1000):
                    raise self._give_up()
                connection.consume_input()
            more = connection.get_result()
            if more is None:
                break
            result = more
        if result is None:
            raise psycopg.OperationalError("the server gave no answer")
        return result

    def _give_up(self) -> psycopg.OperationalError:
        self.pgconn.finish()  # whatever it answers later belongs to nobody
        self.hush.begin()
        return _Silent("the server does not answer")


def _checked(result: PGresult) -> PGresult:
    if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
        raise error_from_result(result)
    return result


class _Hush:
    """For a moment after a server hung, nobody waits for it: only then does the next one try."""

    def __init__(self) -> None:
        self._until = 0.0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Leave the server alone from now on, for a moment."""
        with self._lock:
            self._until = time.monotonic() + _LEFT_ALONE

    def check(self) -> None:
        """Raise while the server is left alone."""
        if time.monotonic() < self._until:
            raise _Silent("the server did not answer just now")


def _prepare_postgresql(engine: Engine) -> None:
    hush = _Hush()

    def connect(*arguments: Any, **options: Any) -> Any:
        hush.check()
        try:
            connection = _Impatient.connect(*arguments, **options)
        except psycopg.errors.ConnectionTimeout:
            hush.begin()
            raise
        connection.hush = hush
        return connection

    ping = engine.dialect.do_ping

    def quick_ping(connection: Any) -> bool:
        connection.silence = _QUICK_SILENCE
        try:
            return ping(connection)
        finally:
            connection.silence = _SILENCE

    engine.dialect.connect = connect  # type: ignore[method-assign]
    engine.dialect.do_ping = quick_ping  # type: ignore[assignment,method-assign]


_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={PATIENCE}")


# A password begins at the first `:` and ends at the next `@`, as SQLAlchemy has it.
_ONE_AT = re.compile(r"[^:]+://(?:[^:/]*(?::[^@]*)?@)?[^@]*")


def checked_url(text: str) -> URL:
    """Read a database URL; bare `postgresql://` means psycopg 3. Raises ValueError for any other database.

    Of a password that holds a bare `@` the rest would be the host, and be printed when nobody finds that.
    """
    if text.startswith("postgresql") and not _ONE_AT.fullmatch(text):
        raise ValueError("it has an @ too many: in a password write @ as %40, : as %3A, / as %2F and % as %25")
    try:
        url = make_url(text)
        own = _DRIVERS[url.drivername]
    except Exception as error:
        raise ValueError(_WHICH) from error
    if own.startswith("postgresql"):
        try:
            make_conninfo("", **{name: str(value) for name, value in url.query.items()})
        except psycopg.ProgrammingError as error:
            raise ValueError(str(error).strip()) from error
    elif not url.database or url.database == ":memory:":
        raise ValueError(_WHICH)
    return url.set(drivername=own)


_WHICH = "it must look like sqlite:////srv/latchkey/portal.db or postgresql://user:password@host:5432/database"
_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}
_DRIVERS |= {"postgresql+psycopg2": "postgresql+psycopg", **{name: name for name in _DRIVERS.values()}}


def _prepare_sqlite(engine: Engine, writing: Engine, url: URL) -> None:
    path = Path(str(url.database))
    if not path.exists():
        path.touch(mode=0o600)  # nobody else on the machine reads digests and password hashes

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None  # we send BEGIN ourselves, below
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    def begin_to_read(connection: Any) -> None:
        if not connection.in_transaction:  # one that writes has begun by then
            connection.execute("BEGIN")

    engine.dialect.do_begin = begin_to_read  # type: ignore[assignment,method-assign]

    @event.listens_for(writing, "begin")
    def begin_to_write(connection: Any) -> None:
        patience = connection.get_execution_options()["portal_patience"]
        if patience == PATIENCE:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        connection.exec_driver_sql(f"PRAGMA busy_timeout={patience:d}")
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        finally:
            connection.exec_driver_sql(f"PRAGMA busy_timeout={PATIENCE}")


__all__ = [
    "MAKES_KEYS",
    "MISTAKES",
    "PATIENCE",
    "TROUBLE",
    "Base",
    "Database",
    "IntegrityError",
    "Moment",
    "Session",
    "broken_rule",
    "checked_url",
    "is_silent",
    "lacks_file",
    "out_of_reach",
    "read",
]
