"""Moments and numbers as people read them (ux, section 8), in the zone and with the clock that a person prefers."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from flask import Flask, g
from markupsafe import Markup, escape

from portal.services.activity import DayBars
from portal.services.key_views import KeyView, ScopeView
from portal.store.models import Account

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def iso(moment: datetime) -> str:
    """Write a moment for machines: RFC 3339 in UTC, to the second."""
    return moment.astimezone(UTC).isoformat()[:19] + "Z"


def absolute(moment: datetime) -> str:
    """Write a moment with its zone, such as "12 Nov 2025, 14:05 UTC+1"."""
    account: Account | None = g.get("account")
    local = moment.astimezone(zone_of(account.time_zone) if account else UTC)
    return f"{local.day} {_MONTHS[local.month - 1]} {local.year}, {_time(local, account)} {_offset(local.utcoffset())}"


def seconds(moment: datetime) -> str:
    """Write the time of day to the second, with its zone, such as "14:05:12 UTC+1"."""
    local = moment.astimezone(_zone())
    offset = _offset(local.utcoffset())
    return f"{local:%I:%M:%S %p} {offset}" if _has_12_hours(g.get("account")) else f"{local:%H:%M:%S} {offset}"


def time_of_day(moment: datetime) -> str:
    """Write the time of day alone, such as "14:05"; its zone stands beside it or in the page."""
    return _time(moment.astimezone(_zone()), g.get("account"))


def clock(moment: datetime) -> dict[str, Any]:
    """Give what a script needs to write times as `seconds` does: minutes from UTC, the zone's name, 12 or 24 hours."""
    local = moment.astimezone(_zone())
    offset = int((local.utcoffset() or timedelta()).total_seconds()) // 60
    return {
        "offset": offset,
        "zone": _offset(local.utcoffset()),
        "hours": 12 if _has_12_hours(g.get("account")) else 24,
    }


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


# --- What a list says in each of its rows: written here, for a macro takes several times as long --------------------


def both(moment: datetime) -> Markup:
    """Write a moment as its distance from now, then with its zone; app.js renews the words of one that is near."""
    near, full = relative(moment), absolute(moment)
    first = f'<time datetime="{iso(moment)}">{near}</time>'
    return _ours(first if near == full else f'{first} <span class="abs">{_unbroken(full)}</span>')


def when(moment: datetime) -> Markup:
    """Write a moment with its zone, as the second line of a cell whose first says the same in relative words."""
    return _ours(f'<time class="abs" datetime="{iso(moment)}" data-fixed>{_unbroken(absolute(moment))}</time>')


def _ours(written: str) -> Markup:
    """Take a text for a page's own: what people typed stands escaped in it."""
    return Markup(written)  # noqa: S704


def _unbroken(full: str) -> str:
    return full.replace(" UTC", "\u00a0UTC")


def people_text(text: str) -> Markup:
    """Write what people typed: escaped, isolated from the direction around it, and out of reach of htmx."""
    return _ours(f"<bdi hx-ignore>{escape(text)}</bdi>")


def scope_words(scopes: Iterable[ScopeView]) -> Markup:
    """Write scopes as "Read Leads, Accounts; write Leads" would say them."""
    of: dict[str, list[str]] = {"read": [], "write": []}
    for scope in scopes:
        of[scope.action].append(people_text(scope.app_name))
    said = [f"{action} {_listed(apps)}" for action, apps in of.items() if apps]
    return _ours("; ".join(said)[:1].upper() + "; ".join(said)[1:])


def _listed(items: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))


def row_actions(key: KeyView, at: str, called: Markup) -> Markup:
    """Write the links to what a member may do with a key from its row, whose addresses begin with `at`."""
    rest = (
        [(key.may_retire, "retire", "Retire now"), (key.may_extend, "extend", "Extend by 24 h")]
        if key.is_retiring
        else [
            (key.may_rotate, "rotate", "Rotate"),
            (key.may_edit, "edit", "Edit"),
            (key.may_deactivate, "deactivate", "Deactivate"),
        ]
    )
    every = [
        (key.may_replace, "replace", "I lost its text"),
        *rest,
        (key.may_reactivate, "reactivate", "Reactivate"),
        (key.may_delete and not key.is_retiring, "delete", "Delete"),
    ]
    return _ours(
        "\n".join(
            f'<a id="key-{key.id}-{name}" href="{at}{key.id}/{name}" aria-label="{label} {called}">{label}</a>'
            for may, name, label in every
            if may
        )
    )


def day_bars(recent: DayBars) -> Markup:
    """Draw fourteen days: strokes of one path, refused requests as a dashed lane of their own below, said in words."""
    most = max(1, *(count for _, count, _ in recent.bars))
    worst = max(1, *(count for _, _, count in recent.bars))
    total, refused = recent.total, recent.refused
    label = f"{total:,} {'request' if total == 1 else 'requests'} in 14 days"
    drawn = ""
    if total:
        day, count = recent.busiest
        label += f", most on {day.day} {_MONTHS[day.month - 1]} ({count:,})"
        lines = (
            f"M{6 * n + 3} 17v-{max(1, round(16 * count / most))}"
            for n, (_, count, _) in enumerate(recent.bars)
            if count
        )
        drawn = f'<path d="{"".join(lines)}" />'
    if refused:
        label += f", {refused:,} refused"
        lines = (
            f"M{6 * n + 3} 19v{max(1, round(5 * count / worst))}"
            for n, (_, _, count) in enumerate(recent.bars)
            if count
        )
        drawn += f'<path class="refused" d="{"".join(lines)}" />'
    return _ours(f'<svg class="bars" viewBox="0 0 84 24" role="img" aria-label="{label}">{drawn}</svg>')


# --- Zones and clocks -----------------------------------------------------------------------------------------------


def _zone() -> tzinfo:
    account: Account | None = g.get("account")
    return zone_of(account.time_zone) if account else UTC


def _has_12_hours(account: Account | None) -> bool:
    return account is not None and account.clock == "12"


def _time(local: datetime, account: Account | None) -> str:
    """Write the time of day of a moment that is in its reader's zone already."""
    if _has_12_hours(account):
        return f"{local.hour % 12 or 12}:{local.minute:02} {'AM' if local.hour < 12 else 'PM'}"
    return f"{local.hour:02}:{local.minute:02}"


@lru_cache
def zone_of(name: str) -> tzinfo:
    """Find a time zone of the IANA database; UTC for one that it no longer holds."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError):
        return UTC


@lru_cache
def _offset(offset: timedelta | None) -> str:
    """Write the offset that holds on some date: "UTC", "UTC+1", "UTC−3:30"."""
    minutes = int((offset or timedelta()).total_seconds()) // 60
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
        both=both,
        when=when,
        people_text=people_text,
        scope_words=scope_words,
        row_actions=row_actions,
        day_bars=day_bars,
    )
