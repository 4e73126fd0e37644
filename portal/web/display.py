"""Moments, numbers, roles and access as people read them (ux, section 8), in the zone and clock that one prefers."""

from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from flask import Flask, g
from markupsafe import Markup, escape

from portal.rules.access import AccessLevel, Role
from portal.services.accounts import Viewer

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
LEVEL_WORDS = {
    AccessLevel.NONE: "No access",
    AccessLevel.READ: "Read-only",
    AccessLevel.FULL: "Full",
    AccessLevel.MANAGE: "Manage",
}
_KEPT = 4096  # moments as they are written: those of a list are shown again and again


@lru_cache(_KEPT)
def iso(moment: datetime) -> str:
    """Write a moment for machines: RFC 3339 in UTC, to the second."""
    return moment.astimezone(UTC).isoformat()[:19] + "Z"


def absolute(moment: datetime) -> str:
    """Write a moment with its zone, such as "12 Nov 2025, 14:05 UTC+1"."""
    return _absolute(moment, *_reader())


@lru_cache(_KEPT)
def _absolute(moment: datetime, zone: str, clock: str) -> str:
    local = moment.astimezone(zone_of(zone))
    return f"{local.day} {MONTHS[local.month - 1]} {local.year}, {_time(local, clock)} {_offset(local)}"


def seconds(moment: datetime) -> str:
    """Write the time of day to the second, with its zone, such as "14:05:12 UTC+1"."""
    local = moment.astimezone(_zone())
    offset = _offset(local)
    return f"{local:%I:%M:%S %p} {offset}" if _clock() == "12" else f"{local:%H:%M:%S} {offset}"


def time_of_day(moment: datetime) -> str:
    """Write the time of day alone, such as "14:05"; its zone stands beside it or in the page."""
    return _time(moment.astimezone(_zone()), _clock())


def clock(moment: datetime) -> dict[str, Any]:
    """Give what a script needs to write times as `seconds` does: minutes from UTC, the zone's name, 12 or 24 hours."""
    local = moment.astimezone(_zone())
    offset = int((local.utcoffset() or timedelta()).total_seconds()) // 60
    return {"offset": offset, "zone": _offset(local), "hours": int(_clock())}


def relative(moment: datetime) -> str:
    """Write how far a moment is from now: minutes, hours, days; beyond 30 days ago or a year ahead, its date."""
    distance = (moment - _here().now).total_seconds()
    size = abs(distance)
    if size < 60:
        return "just now" if distance <= 0 else "in less than a minute"
    if size > 366 * 86_400:
        return absolute(moment)
    # Round to the nearest of the unit, so that "90 days from now" does not read 89 a second later.
    if size < 3570:
        amount = f"{round(size / 60)} min"
    elif size < 23.5 * 3600:
        amount = f"{round(size / 3600)} h"
    else:
        days = round(size / 86_400)
        if days > 30 and distance < 0:
            return absolute(moment)
        amount = f"{days} day{'' if days == 1 else 's'}"
    return f"{amount} ago" if distance < 0 else f"in {amount}"


def role_text(role: str, *, is_lead: bool = False) -> str:
    """Name somebody's part in a workspace."""
    return "Administrator" if role == Role.ADMIN else "Team lead" if is_lead else "Member"


def level_text(level: AccessLevel) -> str:
    """Name a level of access within a sentence, such as "read-only"."""
    return LEVEL_WORDS[level].lower()


def thousands(number: int) -> str:
    """Write a count with separators."""
    return f"{number:,}"


def marked(text: str) -> Markup:
    """Write a text of ours for a page: what stands between backquotes is code."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if n % 2 else part for n, part in enumerate(parts))


# --- As parts of a page: written here, for a macro takes several times as long ---------------------------------------


def both(moment: datetime) -> str:
    """Write a moment as its distance from now, then with its zone; app.js renews the words of one that is near."""
    near, full = relative(moment), absolute(moment)
    first = f'<time datetime="{iso(moment)}">{near}</time>'
    return first if near == full else f'{first} <span class="abs">{_unbroken(full)}</span>'


def when(moment: datetime) -> str:
    """Write a moment with its zone, as the second line of a cell whose first says the same in relative words."""
    return f'<time class="abs" datetime="{iso(moment)}" data-fixed>{_unbroken(absolute(moment))}</time>'


def people_text(text: str) -> str:
    """Write what people typed: escaped, isolated from the direction around it, and out of reach of htmx."""
    return f"<bdi hx-ignore>{escape(text)}</bdi>"


def ours(written: str) -> Markup:
    """Take HTML of ours into a template as it is: what people typed stands escaped in it."""
    return Markup(written)  # noqa: S704


def _unbroken(full: str) -> str:
    return full.replace(" UTC", "\u00a0UTC")


# --- Zones and clocks -----------------------------------------------------------------------------------------------


def _here() -> Any:
    """Give what Flask's `g` stands for: a list asks a hundred times, and the proxy takes ten times as long."""
    return g._get_current_object()  # noqa: SLF001


def _reader() -> tuple[str, str]:
    """Give the name of the zone and the clock of whoever reads: "24" or "12"."""
    here = _here()
    known: tuple[str, str] | None = here.get("reader")
    if known is None:
        account: Viewer | None = here.get("account")
        if account is None:
            return "UTC", "24"
        known = here.reader = account.time_zone, account.clock
    return known


def _zone() -> tzinfo:
    return zone_of(_reader()[0])


def _clock() -> str:
    return _reader()[1]


def _time(local: datetime, clock: str) -> str:
    """Write the time of day of a moment that is in its reader's zone already."""
    return local.strftime("%I:%M %p").lstrip("0") if clock == "12" else local.strftime("%H:%M")


@lru_cache
def zone_of(name: str) -> tzinfo:
    """Find a time zone of the IANA database; UTC for one that it no longer holds."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError):
        return UTC


def _offset(local: datetime) -> str:
    """Write the offset that holds on that date: "UTC", "UTC+1", "UTC−3:30"."""
    minutes = int((local.utcoffset() or timedelta()).total_seconds()) // 60
    hours, rest = divmod(abs(minutes), 60)
    sign = "+" if minutes > 0 else "\N{MINUS SIGN}"
    return "UTC" + (f"{sign}{hours}" if minutes else "") + (f":{rest:02}" if rest else "")


def register(app: Flask) -> None:
    """Make the words known to the templates."""
    app.jinja_env.filters.update(
        iso=iso,
        absolute=absolute,
        seconds=seconds,
        relative=relative,
        thousands=thousands,
        time_of_day=time_of_day,
        marked=marked,
        both=lambda moment: ours(both(moment)),
    )
    app.jinja_env.globals["people_text"] = lambda text: ours(people_text(text))
