"""What templates are made of and given, so that a page is written fast: no indentation, addresses that are known."""

import re
from functools import cache, lru_cache
from typing import Any

from flask import Flask, url_for
from jinja2.ext import Extension
from markupsafe import Markup

# Where white space is text: as it stands.
_KEPT = re.compile(r"(<(pre|textarea)\b.*?</\2>)", re.DOTALL)
_TAG_ALONE = re.compile(r"^[ \t]*(\{%-?(?:(?!%\}).)*?)-?%\}[ \t]*$", re.MULTILINE)
_INDENTATION = re.compile(r"\n[ \t]+")
_ADDRESSES = 1024  # kept; each names a workspace at most
_SELECTS = 256  # kept
_SELECTED = Markup(" selected")


class Tight(Extension):
    """Takes the indentation out of templates, once, when they are compiled: a page is a quarter lighter without it."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """Keep every line of a template, for its number is named in errors, but not what it begins with."""
        parts = _KEPT.split(source)
        for n in range(0, len(parts), 3):
            parts[n] = _INDENTATION.sub("\n", _TAG_ALONE.sub(r"\1-%}", parts[n]))
        return "".join(part for n, part in enumerate(parts) if n % 3 != 2)  # without the names that were matched


def address(endpoint: str, **values: Any) -> str:
    """Give the address of a page as `flask.url_for` does; those that name a workspace at most are made once."""
    if values.keys() <= _KNOWN:
        return _known_address(endpoint, values.get("ws"))
    return url_for(endpoint, **values)


_KNOWN = {"ws"}


@lru_cache(_ADDRESSES)
def _known_address(endpoint: str, ws: str | None) -> str:
    return url_for(endpoint, ws=ws) if ws else url_for(endpoint)


@lru_cache(_SELECTS)
def options(choices: tuple[tuple[str, str], ...], chosen: str) -> Markup:
    """Write what a `select` offers, each choice as its value and its words; once, for a page has some dozens."""
    option = Markup('<option value="{}"{}>{}</option>')
    return Markup("").join(
        option.format(value, _SELECTED if value == chosen else "", str(words)) for value, words in choices
    )


def _icons(app: Flask) -> object:
    """Draw icons of the sprite, one cached file; they stand beside words, so assistive technology passes them over."""

    @cache
    def icon(name: str, kind: str = "") -> Markup:
        asset: Any = app.jinja_env.globals["asset"]
        form = f"i {kind}" if kind else "i"
        drawn = '<svg class="{}" aria-hidden="true"><use href="{}#{}" /></svg>'
        return Markup(drawn).format(form, asset("icons.svg"), name)  # noqa: S704

    return icon


def register(app: Flask) -> None:
    """Give this to the templates of an application."""
    app.jinja_env.add_extension(Tight)
    app.jinja_env.globals["draw"] = _icons(app)
    app.jinja_env.globals["url_for"] = address
    app.jinja_env.filters["options"] = options
