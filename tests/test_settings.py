"""Settings: what each variable does, what it is without, and that a bad value is told in one clear line (T-79)."""

import hashlib
import ipaddress
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app import create_app
from portal.settings import NAMES, BadSetting, Settings, misspelt

ROOT = Path(__file__).parent.parent
GOOD = hashlib.sha256(b"a secret of these tests").hexdigest()
OTHER = hashlib.sha256(b"another secret of these tests").hexdigest()
PRODUCTION = {
    "PORTAL_BASE_URL": "https://keys.example.org",
    "PORTAL_SECRET_KEY": GOOD,
    "PORTAL_KEY_PEPPERS": f"a:{OTHER}",
}


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    """A folder that is not there yet."""
    return tmp_path / "new" / "instance"


def refusal(environ: dict[str, str], instance: Path) -> str:
    """Read settings that must be refused; give what the operator is told."""
    with pytest.raises(BadSetting) as refused:
        Settings.from_environ(environ, instance)
    told = str(refused.value)
    assert "\n" not in told
    return told


# --- Without any setting --------------------------------------------------------------------------------------------


def test_without_any_variable_the_portal_is_local_with_secrets_of_its_own(instance: Path) -> None:
    settings = Settings.from_environ({}, instance)
    assert settings.is_local
    assert not settings.is_https
    assert settings.base_url == "http://127.0.0.1:5000"
    assert set(settings.hosts) == {"localhost", "127.0.0.1", "::1"}
    assert settings.database_url.startswith(f"sqlite:///{instance.resolve()}")
    assert (settings.bind, settings.port, settings.workers) == ("127.0.0.1", 5000, 1)
    assert settings.trusted_proxies == ()
    assert settings.keyring.format.prefix == "sk"
    assert len(settings.keyring.peppers) == 1


def test_local_secrets_are_long_of_their_own_and_kept_for_the_next_start(instance: Path, tmp_path: Path) -> None:
    first, second = (Settings.from_environ({}, instance) for _ in range(2))
    other = Settings.from_environ({}, tmp_path / "elsewhere")
    assert len(first.secret_key) >= 32
    assert len(first.keyring.peppers[0].secret) >= 32
    assert first.secret_key.encode() != first.keyring.peppers[0].secret
    assert (first.secret_key, first.keyring) == (second.secret_key, second.keyring)
    assert first.secret_key != other.secret_key
    assert first.keyring.peppers[0].secret != other.keyring.peppers[0].secret


def test_nobody_else_on_the_machine_can_read_local_secrets(instance: Path) -> None:
    before = os.umask(0)
    try:
        Settings.from_environ({}, instance)
    finally:
        os.umask(before)
    kept = [path for path in instance.iterdir() if path.is_file()]
    assert len(kept) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}


def test_processes_that_start_together_agree_on_the_secrets(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from portal.settings import Settings
while time.time() < float(sys.argv[1]): pass
for n in range(40):
    settings = Settings.from_environ({}, Path(sys.argv[2]) / str(n))
    print(settings.secret_key, settings.keyring.peppers[0].secret.decode())
"""
    start = str(time.time() + 1.5)
    command = [sys.executable, "-c", program, start, str(tmp_path)]
    racers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    printed = [racer.communicate()[0].splitlines() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4
    assert printed[1:] == printed[:-1]
    assert len({secret for line in printed[0] for secret in line.split()}) == 80


def test_a_secret_file_that_was_emptied_is_not_used_as_an_empty_secret(instance: Path) -> None:
    Settings.from_environ({}, instance)
    for path in list(instance.iterdir()):
        kept = path.read_text()
        path.write_text("")
        refusal({}, instance)
        path.write_text(kept)


# --- Each setting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("PORT", "5001", "port", 5001),
        ("PORT", "65535", "port", 65535),
        ("PORT", "", "port", 5000),
        ("PORTAL_WORKERS", "4", "workers", 4),
        ("PORTAL_BIND", "0.0.0.0", "bind", "0.0.0.0"),
        ("PORTAL_BIND", "::1", "bind", "::1"),
        ("PORTAL_DATABASE_URL", "postgresql://db.internal/portal", "database_url", "postgresql://db.internal/portal"),
        ("PORTAL_BASE_URL", "http://localhost:8000/", "base_url", "http://localhost:8000"),
    ],
)
def test_a_setting_is_what_its_variable_says(
    instance: Path, variable: str, value: str, field: str, expected: object
) -> None:
    assert getattr(Settings.from_environ({variable: value}, instance), field) == expected


def test_the_base_url_follows_the_port(instance: Path) -> None:
    assert Settings.from_environ({"PORT": "8123"}, instance).base_url == "http://127.0.0.1:8123"


def test_keys_begin_with_the_configured_word(instance: Path) -> None:
    assert Settings.from_environ({"PORTAL_KEY_PREFIX": "acme"}, instance).keyring.format.prefix == "acme"


def test_several_peppers_are_read_newest_first(instance: Path) -> None:
    settings = Settings.from_environ({"PORTAL_KEY_PEPPERS": f" 2025:{GOOD} , 2024:{OTHER} "}, instance)
    assert [(pepper.id, pepper.secret) for pepper in settings.keyring.peppers] == [
        ("2025", GOOD.encode()),
        ("2024", OTHER.encode()),
    ]


def test_trusted_proxies_are_addresses_and_networks(instance: Path) -> None:
    settings = Settings.from_environ({"PORTAL_TRUSTED_PROXIES": "10.0.0.1, 192.168.0.0/16,fd00::/8,"}, instance)
    expected = ("10.0.0.1/32", "192.168.0.0/16", "fd00::/8")
    assert settings.trusted_proxies == tuple(ipaddress.ip_network(each) for each in expected)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "5000.0"),
        ("PORT", " 5000"),
        ("PORT", "http"),
        ("PORT", "٥٠٠٠"),
        ("PORT", "9" * 5_000),
        ("PORTAL_WORKERS", "0"),
        ("PORTAL_WORKERS", "many"),
        ("PORTAL_BIND", "nowhere at all"),
        ("PORTAL_BIND", "127.0.0.1:5000"),
        ("PORTAL_BASE_URL", "keys.example.org"),
        ("PORTAL_BASE_URL", "ftp://keys.example.org"),
        ("PORTAL_BASE_URL", "https://"),
        ("PORTAL_BASE_URL", "https://keys.example.org/portal"),
        ("PORTAL_BASE_URL", "https://keys.example.org?x=1"),
        ("PORTAL_BASE_URL", "https://keys.example.org#x"),
        ("PORTAL_BASE_URL", "https://ana:pw@keys.example.org"),
        ("PORTAL_BASE_URL", "https://keys.example.org:99999"),
        ("PORTAL_BASE_URL", "https://[::1"),
        ("PORTAL_BASE_URL", "https://keys example.org"),
        ("PORTAL_BASE_URL", "https://keys.example.org:0"),
        ("PORTAL_BASE_URL", "https://keys.example.org."),
        ("PORTAL_BASE_URL", "https://keys..example.org"),
        ("PORTAL_BASE_URL", "https://-"),
        ("PORTAL_BASE_URL", f"https://{'a' * 300}.org"),
        ("PORTAL_SECRET_KEY", ""),
        ("PORTAL_SECRET_KEY", "short"),
        ("PORTAL_SECRET_KEY", GOOD[:31]),
        ("PORTAL_SECRET_KEY", "changeme" * 8),
        ("PORTAL_SECRET_KEY", "change-me-change-me-change-me-change-me"),
        ("PORTAL_SECRET_KEY", "secretsecretsecretsecretsecretsecret"),
        ("PORTAL_SECRET_KEY", "x" * 64),
        ("PORTAL_SECRET_KEY", "0123" * 16),
        ("PORTAL_SECRET_KEY", "\udcff" * 32),  # bytes that are not UTF-8, as os.environ gives them
        ("PORTAL_KEY_PEPPERS", ""),
        ("PORTAL_KEY_PEPPERS", ","),
        ("PORTAL_KEY_PEPPERS", GOOD),
        ("PORTAL_KEY_PEPPERS", f":{GOOD}"),
        ("PORTAL_KEY_PEPPERS", "a:"),
        ("PORTAL_KEY_PEPPERS", "a:short"),
        ("PORTAL_KEY_PEPPERS", "a:changemechangemechangemechangeme"),
        ("PORTAL_KEY_PEPPERS", f"a b:{GOOD}"),
        ("PORTAL_KEY_PEPPERS", f"{'a' * 21}:{GOOD}"),
        ("PORTAL_KEY_PEPPERS", f"a:{GOOD},a:{OTHER}"),
        ("PORTAL_KEY_PEPPERS", f"a:{GOOD};b:{OTHER}"),
        ("PORTAL_KEY_PEPPERS", f"a:{GOOD} b:{OTHER}"),
        ("PORTAL_KEY_PEPPERS", f"a:{GOOD}:b:{OTHER}"),
        ("PORTAL_KEY_PREFIX", "SK"),
        ("PORTAL_KEY_PREFIX", "s"),
        ("PORTAL_KEY_PREFIX", "s_k"),
        ("PORTAL_KEY_PREFIX", ".*"),
        ("PORTAL_MAIL_FROM", "Keys <keys@example.org>\nBcc: all@example.org"),
        ("PORTAL_MAIL_FROM", "keys@example.org, all@example.org"),
        ("PORTAL_MAIL_FROM", "Keys <keys@example.org> all"),
        ("PORTAL_REDIS_URL", "redis://redis.internal/0?ssl_cert_reqs=none"),
        ("PORTAL_REDIS_URL", "redis://redis.internal?db=x"),
        ("PORTAL_REDIS_URL", "redis://redis.internal?socket_timeout=soon"),
        ("PORTAL_REDIS_URL", "redis://redis.internal?protocol=9"),
        ("PORTAL_REDIS_URL", "rediss://redis.internal?retry=3"),
        ("PORTAL_REDIS_URL", "rediss://redis.internal?ssl_colour=red"),
        ("PORTAL_TRUSTED_PROXIES", "proxy.internal"),
        ("PORTAL_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("PORTAL_TRUSTED_PROXIES", "10.0.0.0/99"),
        ("PORTAL_REPLICA_URL", "sqlite:////tmp/copy.db"),
        ("PORTAL_REPLICA_URL", "postgresql://replica.internal/portal"),  # of a portal on SQLite
        ("PORTAL_DATABASE_URL", "mysql://db/portal"),
        ("PORTAL_DATABASE_URL", "sqlite://"),
        ("PORTAL_DATABASE_URL", "not a url"),
        ("PORTAL_DATABASE_URL", "postgresql://portal@db:port/portal"),
        ("PORTAL_DATABASE_URL", "postgresql://portal@db/portal?ssl=yes"),
        ("PORTAL_DATABASE_URL", "postgresql+asyncpg://portal@db/portal"),
        ("PORTAL_DATABASE_URL", "sqlite:////dev/null/portal.db"),
        ("PORTAL_INSTANCE", "/dev/null"),
        ("PORTAL_INSTANCE", "/dev/null/latchkey"),
    ],
)
def test_a_bad_value_stops_the_start_with_one_line_that_names_the_variable(
    instance: Path, variable: str, value: str
) -> None:
    environ = {"PORTAL_INSTANCE": str(instance), variable: value}
    with pytest.raises(SystemExit) as stopped:
        create_app(environ)
    told = str(stopped.value.code)
    assert told.startswith(f"Cannot start: {variable}")
    assert "\n" not in told


def test_a_kept_secret_that_was_damaged_is_named(instance: Path) -> None:
    instance.mkdir(parents=True)
    (instance / "key_pepper").write_bytes(b"\xff\xfe" * 40)
    with pytest.raises(SystemExit, match="key_pepper must hold a secret"):
        create_app({"PORTAL_INSTANCE": str(instance)})


@pytest.mark.parametrize("url", ["redis://:word@redis.internal:6380/1", "rediss://redis.internal/0?ssl_cert_reqs=none"])
def test_redis_may_be_given_a_password_a_database_and_options_of_tls(instance: Path, url: str) -> None:
    assert Settings.from_environ({"PORTAL_REDIS_URL": url}, instance).redis_url == url


def test_a_secret_may_hold_any_ascii(instance: Path) -> None:
    secret = "Xk3:9fL;2mQ8vR7wT1yU5iO0pA4s D6fG8hJ-1qZ7bN"
    (pepper,) = Settings.from_environ({"PORTAL_KEY_PEPPERS": f"p1:{secret}"}, instance).keyring.peppers
    assert pepper.secret == secret.encode()


def test_a_pepper_without_its_id_is_told_how_one_looks(instance: Path) -> None:
    with pytest.raises(SystemExit, match="must look like id:secret"):
        create_app({"PORTAL_INSTANCE": str(instance), "PORTAL_KEY_PEPPERS": "hunter2"})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORTAL_SECRET_KEY", "hunter2"),
        ("PORTAL_KEY_PEPPERS", "a:hunter2"),
        ("PORTAL_KEY_PEPPERS", "hunter2hunter2hunter2hunter2hunter2"),
        ("PORTAL_DATABASE_URL", "mysql://portal:hunter2@db/portal"),
        ("PORTAL_DATABASE_URL", "postgresql://portal:a@hunter2@db/portal"),
        ("PORTAL_DATABASE_URL", "postgresql://portal:a@b/hunter2@db/portal"),
        ("PORTAL_DATABASE_URL", "postgresql://portal:a@b:hunter2@db/portal"),
        ("PORTAL_DATABASE_URL", "postgresql://portal:a@b?hunter2@db/portal"),
        ("PORTAL_DATABASE_URL", "postgresql+psycopg://portal:@hunter2@db/portal"),
        ("PORTAL_REPLICA_URL", "postgresql://portal:a@hunter2@db/portal"),
    ],
)
def test_a_refused_secret_is_not_repeated(instance: Path, variable: str, value: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        database = "postgresql://db.internal/portal"
        create_app({"PORTAL_INSTANCE": str(instance), "PORTAL_DATABASE_URL": database, variable: value})
    assert "hunter2" not in str(stopped.value.code)


def test_settings_print_no_secret(instance: Path) -> None:
    environ = PRODUCTION | {"PORTAL_DATABASE_URL": "postgresql://portal:hunter2@db.internal/portal"}
    printed = repr(Settings.from_environ(environ, instance))
    assert PRODUCTION["PORTAL_SECRET_KEY"] not in printed
    assert PRODUCTION["PORTAL_KEY_PEPPERS"].partition(":")[2] not in printed
    assert "hunter2" not in printed


# --- Local and production -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base_url",
    [
        "http://localhost",
        "http://localhost:5000",
        "http://127.0.0.1:8000",
        "http://[::1]:5000",
        "http://LOCALHOST:5000",
    ],
)
def test_plain_http_on_a_loopback_name_is_local(instance: Path, base_url: str) -> None:
    settings = Settings.from_environ({"PORTAL_BASE_URL": base_url}, instance)
    assert settings.is_local
    assert set(settings.hosts) == {"localhost", "127.0.0.1", "::1"}


@pytest.mark.parametrize(
    "base_url",
    [
        "https://keys.example.org",
        "http://keys.example.org",
        "https://localhost",
        "https://127.0.0.1:8443",
        "http://localhost.example.org",
        "http://127.0.0.1.example.org",
        "http://10.0.0.1",
    ],
)
def test_anything_else_is_production_and_demands_secrets(instance: Path, base_url: str) -> None:
    settings = Settings.from_environ(PRODUCTION | {"PORTAL_BASE_URL": base_url}, instance)
    assert not settings.is_local
    assert len(settings.hosts) == 1
    for missing in ("PORTAL_SECRET_KEY", "PORTAL_KEY_PEPPERS"):
        environ = PRODUCTION | {"PORTAL_BASE_URL": base_url}
        del environ[missing]
        assert missing in refusal(environ, instance)
    assert not instance.exists() or not list(instance.iterdir())  # nothing was made up instead


@pytest.mark.parametrize(
    ("base_url", "host"),
    [
        ("https://keys.example.org", "keys.example.org"),
        ("https://KEYS.Example.ORG:8443", "keys.example.org"),
        ("https://[2001:db8::1]:8443", "2001:db8::1"),
    ],
)
def test_in_production_only_the_base_urls_host_is_served(instance: Path, base_url: str, host: str) -> None:
    assert Settings.from_environ(PRODUCTION | {"PORTAL_BASE_URL": base_url}, instance).hosts == (host,)


@pytest.mark.parametrize("base_url", ["https://keys.example.org", "HTTPS://keys.example.org"])
def test_cookies_are_secure_exactly_when_the_base_url_is_https(instance: Path, base_url: str) -> None:
    database = f"sqlite:///{instance}/portal.db"
    common: dict[str, Any] = PRODUCTION | {"PORTAL_INSTANCE": str(instance), "PORTAL_DATABASE_URL": database}
    secure = create_app(common | {"PORTAL_BASE_URL": base_url})
    plain = create_app(common | {"PORTAL_BASE_URL": "http://keys.example.org"})
    for app, is_https in ((secure, True), (plain, False)):
        assert app.config["SESSION_COOKIE_SECURE"] is is_https
        assert app.config["SESSION_COOKIE_NAME"].startswith("__Host-") is is_https
        app.extensions["portal"].close()


@pytest.mark.parametrize("debug", ["1", "true", "yes"])
def test_production_refuses_to_start_with_debug_on(instance: Path, debug: str) -> None:
    assert "FLASK_DEBUG" in refusal(PRODUCTION | {"FLASK_DEBUG": debug}, instance)


@pytest.mark.parametrize("debug", ["", "0"])
def test_production_starts_with_debug_switched_off(instance: Path, debug: str) -> None:
    assert not Settings.from_environ(PRODUCTION | {"FLASK_DEBUG": debug}, instance).is_local


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o666])
def test_production_refuses_a_database_file_that_everybody_may_open(instance: Path, mode: int) -> None:
    instance.mkdir(parents=True)
    file = instance / "portal.db"
    file.touch()
    file.chmod(mode)
    environ = PRODUCTION | {"PORTAL_INSTANCE": str(instance), "PORTAL_DATABASE_URL": f"sqlite:///{file}"}
    with pytest.raises(SystemExit) as stopped:
        create_app(environ)
    assert str(stopped.value.code).startswith(f"Cannot start: everybody on this machine may open {file}")
    for allowed, more in ((0o640, {}), (mode, {"PORTAL_BASE_URL": "http://localhost"})):
        file.chmod(allowed)
        create_app(environ | more).extensions["portal"].close()


def test_every_setting_that_is_read_is_known_and_documented() -> None:
    read = set(
        re.findall("PORTAL_[A-Z_]+", (ROOT / "portal" / "settings.py").read_text() + (ROOT / "app.py").read_text())
    )
    table = (ROOT / "docs" / "deploy.md").read_text().partition("## 11.")[2].partition("## 12.")[0]
    documented = set(re.findall("PORTAL_[A-Z_]+", table))
    assert read == set(NAMES) == documented


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PORTAL_WOKERS", "PORTAL_WORKERS"),
        ("PORTAL_REDIS", "PORTAL_REDIS_URL"),
        ("PORTAL_PEPPERS", "PORTAL_KEY_PEPPERS"),
        *((name, None) for name in ("PORTAL_SERVICE_HOST", "PORTAL_SERVICE_PORT", "PORTAL_PORT", "PORTAL_PORT_80_TCP")),
    ],
)
def test_a_misspelt_name_leads_to_the_setting_that_is_meant(name: str, meant: str | None) -> None:
    assert misspelt({name: "1", "PATH": "/bin", "PORTAL_BIND": "::1"}) == ([(name, meant)] if meant else [])
