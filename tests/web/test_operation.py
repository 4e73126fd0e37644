"""What those who run the portal ask it: alive, ready, numbers (T-67); and that a database that hangs hangs nobody."""

import os
import socket
import stat
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from app import create_app
from portal import metrics
from portal.metrics import BUCKETS
from portal.store.database import Database
from tests.cast import Cast
from tests.databases import Template
from tests.servers import serving
from tests.valkey import valkey

pytestmark = pytest.mark.both

TOKEN = "a token that only the watchers have, f00"


_made: list[Flask] = []


@pytest.fixture(autouse=True)
def closed_afterwards() -> Iterator[None]:
    yield
    while _made:
        _made.pop().extensions["portal"].close()


def portal_with(database_url: str, tmp_path: Path, **settings: str) -> Flask:
    app = create_app({"PORTAL_DATABASE_URL": database_url, "PORTAL_INSTANCE": str(tmp_path), **settings})
    _made.append(app)
    return app


def production(database_url: str, tmp_path: Path, **settings: str) -> FlaskClient:
    secrets = {"PORTAL_SECRET_KEY": "0123456789abcdef" * 4, "PORTAL_KEY_PEPPERS": "a:" + "fedcba9876543210" * 4}
    app = portal_with(database_url, tmp_path, PORTAL_BASE_URL="http://keys.example.org", **secrets, **settings)
    return app.test_client()


def numbers(text: str) -> dict[str, float]:
    """Read metrics with somebody else's parser."""
    return {
        sample.name + "".join(f"|{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# --- Ready ----------------------------------------------------------------------------------------------------------


def test_a_portal_whose_database_answers_is_ready(app: Flask) -> None:
    for _ in range(2):
        reply = app.test_client().get("/readyz")
        assert (reply.status_code, reply.text.splitlines()[0]) == (200, "ready")


def test_a_database_without_tables_or_at_another_migration_is_not_ready(
    blank_url: str, database_url: str, database: Database, tmp_path: Path
) -> None:
    without = portal_with(blank_url, tmp_path)
    refused = without.test_client().get("/readyz")
    assert (refused.status_code, "Run: .venv/bin/flask migrate" in refused.text) == (503, True)
    assert 1 <= int(refused.headers["Retry-After"]) <= 30

    other = portal_with(database_url, tmp_path)
    client = other.test_client()
    assert client.get("/readyz").status_code == 200
    with database.transaction() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    assert "older migration" in client.get("/readyz").text
    assert client.get("/healthz").status_code == 200


@pytest.fixture
def silent_url() -> Iterator[str]:
    """A PostgreSQL server that takes connections and never says a word, as one that was stopped does."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"postgresql://nobody@127.0.0.1:{server.getsockname()[1]}/portal"


def test_a_database_that_hangs_is_told_of_in_the_same_words_each_time(
    silent_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However long after the question that was not answered one asks again."""
    client = portal_with(silent_url, tmp_path).test_client()
    for _ in range(3):
        assert client.get("/readyz").text.startswith("The database does not answer.")
        time.sleep(0.2)
    assert [each.getMessage() for each in caplog.records if each.name.endswith("readiness")] == [
        "not ready: The database does not answer."
    ]


def test_a_database_that_hangs_is_told_within_a_second_and_holds_nobody_up(silent_url: str, tmp_path: Path) -> None:
    app = portal_with(silent_url, tmp_path)
    key = "Bearer " + app.extensions["portal"].settings.keyring.format.mint("live").reveal()
    client = app.test_client()
    assert client.get("/healthz").status_code == 200  # the first answer of a portal takes longer
    start = time.monotonic()
    assert client.get("/readyz").status_code == 503
    assert time.monotonic() - start < 1.8  # it is given up after 0.9 s; left to itself, after two
    assert client.get("/healthz").status_code == 200

    start = time.monotonic()
    replies = [client.get("/api/v1/me", headers={"Authorization": key}) for _ in range(20)]
    assert time.monotonic() - start < 25  # not 2 s each: one waits, and for a moment after it nobody does
    assert {reply.status_code for reply in replies} == {503}
    assert not any("WWW-Authenticate" in reply.headers for reply in replies)


@pytest.mark.server
def test_a_question_to_a_server_that_went_silent_is_given_up(database_url: str) -> None:
    with closing(Database(database_url)) as database:  # its own: for a second nobody may ask this one
        connection = database.driver_connection()
        start = time.monotonic()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT pg_sleep(8)")
        assert time.monotonic() - start < 4
        assert connection.closed


@pytest.mark.server
def test_a_command_that_may_wait_for_long_finds_out_that_the_network_is_gone(database: Database) -> None:
    with database.engine.begin() as connection:
        database.take_time(connection)
        asked = connection.connection.driver_connection.info.get_parameters()  # type: ignore[union-attr]
        assert {name: asked[name] for name in asked if name.startswith(("keepalives_", "tcp_"))} == {
            "keepalives_idle": "30",
            "keepalives_interval": "10",
            "keepalives_count": "3",
            "tcp_user_timeout": "60000",
        }


# --- Numbers --------------------------------------------------------------------------------------------------------


def test_metrics_count_answers_by_endpoint_and_refusals_by_reason(app: Flask) -> None:
    cast = Cast(app)
    key = cast.rio.generate()
    before = numbers(app.test_client().get("/metrics").text)
    for _ in range(3):
        assert cast.call("GET", "/me", key).status_code == 200
    assert cast.call("GET", "/me").status_code == 401
    assert cast.call("BREW", "/me").status_code == 405
    assert cast.call("GET", "/apps/leads/records", key).status_code == 403
    told = app.test_client().get("/metrics")
    assert told.content_type.startswith("text/plain; version=0.0.4")
    after = numbers(told.text)

    def more(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert more("latchkey_requests_total|api.me|GET|2xx") == 3
    assert more("latchkey_requests_total|api.me|GET|4xx") == 1
    assert more("latchkey_requests_total|none|other|4xx") == 1
    assert more("latchkey_refused_total|missing_key") == 1
    assert more("latchkey_refused_total|missing_scope") == 1
    assert more("latchkey_request_seconds_count|api") == 5
    assert more("latchkey_request_seconds_bucket|api|+Inf") == 5
    assert [after[f"latchkey_request_seconds_bucket|api|{bound}"] for bound in BUCKETS] == sorted(
        after[f"latchkey_request_seconds_bucket|api|{bound}"] for bound in BUCKETS
    )
    assert after["latchkey_processes"] == 1
    assert key.text not in told.text


def test_what_somebody_makes_up_is_no_series(app: Flask) -> None:
    client = app.test_client()
    for n in range(50):
        client.open(f"/made/up/{n}", method=f"MADE{n}")
        client.get("/healthz", headers={"Host": f"made{n}.up"})
    assert "made" not in client.get("/metrics").text.lower()


def test_strangers_do_not_see_metrics(database_url: str, tmp_path: Path) -> None:
    here = portal_with(database_url, tmp_path, PORTAL_TRUSTED_PROXIES="203.0.113.7").test_client()
    assert here.get("/metrics").status_code == 200
    afar: Any = {"REMOTE_ADDR": "203.0.113.7"}
    forged = {"X-Forwarded-For": "127.0.0.1"}
    for headers in ({}, forged):  # whom a proxy speaks for is not who asks
        assert here.get("/metrics", environ_base=afar, headers=headers).status_code == 404
    public = production(database_url, tmp_path)
    assert public.get("/metrics", base_url="http://keys.example.org").status_code == 404
    proxied = production(database_url, tmp_path, PORTAL_TRUSTED_PROXIES="127.0.0.1")
    assert proxied.get("/metrics", base_url="http://keys.example.org", headers=forged).status_code == 404


def test_whoever_has_the_token_sees_metrics_under_the_hosts_address_too(database_url: str, tmp_path: Path) -> None:
    client = production(database_url, tmp_path, PORTAL_METRICS_TOKEN=TOKEN)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    for base in ("http://keys.example.org", "http://10.1.2.3:5000"):
        assert client.get("/metrics", base_url=base, headers=bearer).status_code == 200
        for wrong in ({}, {"Authorization": f"Bearer {TOKEN[:-1]}"}, {"Authorization": f"Basic {TOKEN}"}):
            refused = client.get("/metrics", base_url=base, headers=wrong)
            assert (refused.status_code, "WWW-Authenticate" in refused.headers) == (401, True)
        assert client.get("/readyz", base_url=base).status_code == 200
    assert client.get("/readyz", base_url="http://elsewhere.example.org").status_code == 400
    assert client.get("/login", base_url="http://10.1.2.3:5000").status_code == 400


def test_a_token_that_anybody_guesses_stops_the_start(database_url: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="PORTAL_METRICS_TOKEN"):
        portal_with(database_url, tmp_path, PORTAL_METRICS_TOKEN="short")


def test_all_workers_count_together_and_exactly(template: Template, tmp_path: Path) -> None:
    """With Redis, of whose state the server's own process must not count anything before it starts them."""
    with (
        template.copy() as url,
        valkey() as redis,
        serving(url, tmp_path, PORTAL_WORKERS="3", PORTAL_REDIS_URL=redis.url) as server,
    ):
        seen = set()
        for n in range(1, 121):  # a connection each, so that they reach whichever worker
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{server.url}/api/v1/me")
            refused.value.close()
            assert refused.value.code == 401
            if n % 20 == 0:
                with urllib.request.urlopen(f"{server.url}/metrics") as told:
                    found = numbers(told.read().decode())
                assert found["latchkey_requests_total|api.me|GET|4xx"] == n
                seen.add(found["latchkey_processes"])
        assert max(seen) > 1


def test_a_redis_that_never_answered_is_not_said_to_answer(database_url: str, tmp_path: Path) -> None:
    with valkey() as redis:
        app = portal_with(database_url, tmp_path, PORTAL_REDIS_URL=redis.url)
        assert app.test_client().get("/readyz").text == "ready\nRedis: answers\n"
        redis.stop()
        app = portal_with(database_url, tmp_path, PORTAL_REDIS_URL=redis.url)
        ready = app.test_client().get("/readyz")
    assert (ready.status_code, ready.text) == (200, "ready\nRedis: away; this host limits rates by itself\n")
    assert numbers(app.test_client().get("/metrics").text)["latchkey_redis_up"] == 0


def test_what_a_killed_server_left_behind_goes_with_the_next_start() -> None:
    with metrics.shared():
        mine = Path(os.environ[metrics.FOLDER])
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = mine.with_name(f"latchkey-{ended.pid}-left")
    others = mine.with_name(f"latchkey-{os.getppid()}-theirs")
    for folder in (left, others):
        folder.mkdir()
    with metrics.shared():
        assert (left.exists(), others.exists()) == (False, True)
        assert stat.S_IMODE(Path(os.environ[metrics.FOLDER]).stat().st_mode) == 0o700
    others.rmdir()
    assert metrics.FOLDER not in os.environ


def test_a_process_that_is_about_to_begin_spoils_no_scrape(tmp_path: Path) -> None:
    """Its file is there before it has its length, and the parts of a histogram come one by one."""
    (tmp_path / f"{os.getpid()}-1.numbers").touch()
    numbers = metrics.Numbers(tmp_path)
    numbers.add("latchkey_request_seconds", "api|0")
    told = {family.name: family for family in text_string_to_metric_families(numbers.text())}
    assert [sample.value for sample in told["latchkey_processes"].samples] == [1]
    seconds = {sample.name: sample.value for sample in told["latchkey_request_seconds"].samples}
    assert (seconds["latchkey_request_seconds_count"], seconds["latchkey_request_seconds_sum"]) == (1, 0)


def test_a_full_file_goes_on_counting_what_it_knows_and_nothing_new() -> None:
    numbers = metrics.Numbers()
    numbers.request("api.me", "GET", 200, 0.01)
    for n in range(5_000):
        numbers.add("latchkey_refused_total", f'reason="{n}"')
    full = numbers.text()
    for seconds in (0.0001, 60):
        numbers.request("keys.index", "GET", 200, seconds)
    assert numbers.text() == full
    numbers.request("api.me", "GET", 200, 0.01)
    assert numbers.text() != full
