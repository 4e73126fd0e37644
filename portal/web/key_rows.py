"""The row of a key in a list, as HTML. No template: a list has up to a hundred, and there each value takes several µs.

What people typed is written by `people_text` or `escape`; all else here is ours.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cache, lru_cache
from typing import Any

from flask import Flask, g
from markupsafe import Markup, escape

from portal.services.activity import DayBars
from portal.services.key_views import KeyView, ScopeView
from portal.store.models import KeyState
from portal.web.display import MONTHS, absolute, both, iso, ours, people_text, relative, when

_SHOWN = 3  # scopes; the others are behind "more"
_SOON = timedelta(days=3)


def key_row(badges: Mapping[str, str], key: KeyView, at: str, below: str = "") -> Markup:
    """Write a key's row, with the row `below` it, if any; the addresses of its pages begin with `at`.

    `badges` are by environment and state; `orphaned` is that of a key whose owner is not active.
    """
    called = f"{escape(key.name)}{' (old)' if key.is_old else ''} {key.last_four}"
    works = key.owner.is_active or key.state is not KeyState.ACTIVE
    old = ' class="is-old"' if key.is_old else ""
    return ours(
        f"""<tbody role="rowgroup" id="key-{key.id}" data-env="{key.environment}" data-state="{key.state}"{old}>
<tr role="row">
<th role="rowheader" scope="row"><div>
{_key(key, at, badges[key.environment])}
</div></th>
<td role="cell">{badges[key.state if works else "orphaned"]}</td>
<td role="cell">{_scopes(key, called)}</td>
<td role="cell">{_use(key)}</td>
<td role="cell">{_end(key, at)}</td>
<td role="cell"><div>
{_actions(key, at, called)}
</div></td>
</tr>
{below}</tbody>"""
    )


def _key(key: KeyView, at: str, environment: str) -> str:
    owner, created_at = key.owner, key.created_at
    old = "&nbsp;(old)" if key.is_old else ""
    meta = ""
    if owner.kind != "me":
        api = ", API member" if owner.kind == "api" else ""
        meta += f'\n<span class="meta">acts as {people_text(owner.name)}{api}</span>'
    if key.note:
        meta += f'\n<span class="meta">Used in: {people_text(key.note)}</span>'
    by = "" if key.created_by == owner.name else f" by {people_text(key.created_by)}"
    return f"""<a id="key-{key.id}-link" href="{at}{key.id}">{people_text(key.name)}{old}</a>
{environment}
<code class="hint" translate="no"><span aria-hidden="true">{key.hint}</span>\
<span class="vh">ends in {" ".join(key.last_four)}</span></code>{meta}
<span class="meta">Created <time datetime="{iso(created_at)}">{absolute(created_at)}</time>{by}</span>"""


def _scopes(key: KeyView, called: str) -> str:
    shown, paused = key.shown_scopes, key.paused_scopes
    written = f"<p>{_words(shown[:_SHOWN])}</p>" if shown else ""
    if len(shown) > _SHOWN:
        written += f"""<details class="more">
<summary>and {len(shown) - _SHOWN} more<span class="vh"> scopes of {called}</span></summary>
<p>{_words(shown[_SHOWN:])}</p>
</details>"""
    for scope in paused:
        what = f"<s>{scope.action.capitalize()} {people_text(scope.app_name)}</s>"
        why = f'<span class="paused">paused: {people_text(scope.why_not)}</span>'
        written += f'<p class="muted">{what} {why}</p>'
    if paused:
        written += '<span class="tag tag-warn">Limited by owner</span>'
    return f'{written} <span class="tag">Read-only</span>' if key.is_read_only else written


def _words(scopes: Sequence[ScopeView]) -> str:
    return _scope_words(tuple((scope.action, scope.app_name) for scope in scopes))


@lru_cache(256)  # the keys of a list have few different ones
def _scope_words(scopes: tuple[tuple[str, str], ...]) -> str:
    """Write scopes as in "Read Leads and Accounts; write Leads"."""
    apps = {wanted: [people_text(app) for action, app in scopes if action == wanted] for wanted in ("read", "write")}
    said = "; ".join(f"{action} {_listed(named)}" for action, named in apps.items() if named)
    return said[:1].upper() + said[1:]


def _listed(items: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))


def _use(key: KeyView) -> str:
    recent = key.recent
    if key.last_used_at:
        written = both(key.last_used_at)
        if key.last_used_address:
            written += f'\n<span class="abs">{people_text(key.last_used_address)}</span>'
    else:
        refused = f"Called, but never accepted: {key.refused:,} refused" if key.refused else "Never used"
        written = f'<span class="muted">{refused if recent else "Not known"}</span>'
    if recent and (recent.total or recent.refused):
        return f'{written}\n<span class="abs">{_bars(recent)}{recent.today:,} today</span>'
    return f'{written}\n<span class="abs">No requests in 14 days</span>' if recent and key.last_used_at else written


def _bars(recent: DayBars) -> str:
    """Draw fourteen days: strokes of one path, refused requests as a dashed lane of their own below, said in words."""
    most = max(1, *(count for _, count, _ in recent.bars))
    worst = max(1, *(count for _, _, count in recent.bars))
    total, refused = recent.total, recent.refused
    label = f"{total:,} {'request' if total == 1 else 'requests'} in 14 days"
    drawn = ""
    if total:
        day, count = recent.busiest
        label += f", most on {day.day} {MONTHS[day.month - 1]} ({count:,})"
        heights = ((n, round(16 * count / most)) for n, (_, count, _) in enumerate(recent.bars) if count)
        drawn += f'<path d="{"".join(f"M{6 * n + 3} 17v-{max(1, high)}" for n, high in heights)}" />'
    if refused:
        label += f", {refused:,} refused"
        heights = ((n, round(5 * count / worst)) for n, (_, _, count) in enumerate(recent.bars) if count)
        drawn += f'<path class="refused" d="{"".join(f"M{6 * n + 3} 19v{max(1, high)}" for n, high in heights)}" />'
    return f'<svg class="bars" viewBox="0 0 84 24" role="img" aria-label="{label}">{drawn}</svg>'


def _end(key: KeyView, at: str) -> str:
    expires_at = key.expires_at
    if key.is_retiring and key.retires_at:
        return f'<span class="tag tag-warn">Retiring {relative(key.retires_at)}</span>\n{when(key.retires_at)}'
    if key.state is KeyState.REVOKED:
        ended_at = key.revoked_at or key.retires_at
        written = f"{'Deleted' if key.revoked_at else 'Retired'} {both(ended_at) if ended_at else ''}"
        if key.successor_id:
            link = f"{people_text(key.successor_name)} …{key.successor_last_four}"
            written += f'\n<span class="abs">Replaced by <a href="{at}{key.successor_id}">{link}</a></span>'
        return written
    if not expires_at:
        return '<span class="tag">Never expires</span>'
    if key.state is KeyState.EXPIRED:
        return f"Expired {both(expires_at)}"
    if key.is_expiring:
        tag = "tag-bad" if expires_at - g.now <= _SOON else "tag-warn"
        return f'<span class="tag {tag}">Expires {relative(expires_at)}</span>\n{when(expires_at)}'
    return both(expires_at)


def _actions(key: KeyView, at: str, called: str) -> str:
    usual: tuple[tuple[bool, str, str], ...]
    if key.is_retiring:
        usual = ((key.may_retire, "retire", "Retire now"), (key.may_extend, "extend", "Extend by 24 h"))
    else:
        usual = (
            (key.may_rotate, "rotate", "Rotate"),
            (key.may_edit, "edit", "Edit"),
            (key.may_deactivate, "deactivate", "Deactivate"),
        )
    every = (
        (key.may_replace, "replace", "Replace it"),
        *usual,
        (key.may_reactivate, "reactivate", "Reactivate"),
        (key.may_delete and not key.is_retiring, "delete", "Delete"),
    )
    written = [
        f'<a id="key-{key.id}-{name}" href="{at}{key.id}/{name}" aria-label="{label} {called}">{label}</a>'
        for may, name, label in every
        if may
    ]
    if key.state is KeyState.REVOKED:
        label = f"Generate a key similar to {called}"
        similar = f'href="{at}new?from={key.id}" aria-label="{label}"'
        written.append(f'<a id="key-{key.id}-similar" {similar}>Generate a similar key</a>')
    return "\n".join(written)


def register(app: Flask) -> None:
    """Make rows known to the templates."""

    @cache
    def badges() -> dict[str, str]:
        ui: Any = app.jinja_env.globals["ui"]
        states = {str(state): ui.state_badge(str(state)) for state in KeyState}
        return {"live": ui.env_tag("live"), "test": ui.env_tag("test"), **states, "orphaned": ui.orphaned()}

    app.jinja_env.filters["key_row"] = lambda key, at, below: key_row(badges(), key, at, below)
