"""Moments and numbers as people read them (ux, section 8)."""

from datetime import UTC, datetime, timedelta

from flask import Flask, g

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def iso(moment: datetime) -> str:
    """Write a moment for machines: RFC 3339 in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def absolute(moment: datetime) -> str:
    """Write a moment with its zone, such as "12 Nov 2025, 14:05 UTC"."""
    moment = moment.astimezone(UTC)
    return f"{moment.day} {_MONTHS[moment.month - 1]} {moment.year}, {moment:%H:%M} UTC"


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


def register(app: Flask) -> None:
    """Make the words known to the templates."""
    app.jinja_env.filters.update(iso=iso, absolute=absolute, relative=relative, thousands=thousands)
