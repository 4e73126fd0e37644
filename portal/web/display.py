"""Moments and numbers as people read them (ux, section 8), in the zone and with the clock that a person prefers."""

from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from flask import Flask, g
from markupsafe import Markup

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def iso(moment: datetime) -> str:
    """Write a moment for machines: RFC 3339 in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def absolute(moment: datetime) -> str:
    """Write a moment with its zone, such as "12 Nov 2025, 14:05 UTC+1"."""
    local = moment.astimezone(_zone())
    return f"{local.day} {_MONTHS[local.month - 1]} {local.year}, {time_of_day(moment)} {_offset(local)}"


def seconds(moment: datetime) -> str:
    """Write the time of day to the second, with its zone, such as "14:05:12 UTC+1"."""
    local = moment.astimezone(_zone())
    return f"{local:%I:%M:%S %p} {_offset(local)}" if _has_12_hours() else f"{local:%H:%M:%S} {_offset(local)}"


def time_of_day(moment: datetime) -> str:
    """Write the time of day alone, such as "14:05"; its zone stands beside it or in the page."""
    local = moment.astimezone(_zone())
    return local.strftime("%I:%M %p").lstrip("0") if _has_12_hours() else local.strftime("%H:%M")


def clock(moment: datetime) -> dict[str, Any]:
    """Give what a script needs to write times as `seconds` does: minutes from UTC, the zone's name, 12 or 24 hours."""
    local = moment.astimezone(_zone())
    offset = int((local.utcoffset() or timedelta()).total_seconds()) // 60
    return {"offset": offset, "zone": _offset(local), "hours": 12 if _has_12_hours() else 24}


def relative(moment: datetime, now: datetime | None = None) -> str:
    """Write how far a moment is from now: minutes, hours, days up to 30; from there on its date."""
    distance = moment - (now or g.now)
    size = abs(distance)
    if size < timedelta(minutes=1):
        return "just now" if distance <= timedelta() else "in less than a minute"
    if size > timedelta(days=366):
        return absolute(moment)
    # Round to the nearest of the unit, so that "90 days from now" does not read 89 a second later.
    if size < timedelta(minutes=59, seconds=30):
        amount = f"{round(size / timedelta(minutes=1))} min"
    elif size < timedelta(hours=23, minutes=30):
        amount = f"{round(size / timedelta(hours=1))} h"
    else:
        days = round(size / timedelta(days=1))
        if days > 30 and distance < timedelta():
            return absolute(moment)
        amount = f"{days} day{'' if days == 1 else 's'}"
    return f"{amount} ago" if distance < timedelta() else f"in {amount}"


def thousands(number: int) -> str:
    """Write a count with separators."""
    return f"{number:,}"


def marked(text: str) -> Markup:
    """Write a text of ours for a page: what stands between backquotes is code."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if n % 2 else part for n, part in enumerate(parts))


def _zone() -> tzinfo:
    account = g.get("account")
    return zone_of(account.time_zone) if account else UTC


def _has_12_hours() -> bool:
    account = g.get("account")
    return account is not None and account.clock == "12"


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
    )
