"""The main job from end to end, in every way that a person may go it. The record of it is the database."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import func, select

from portal.store.database import Database
from tests.browser.acting import KEYS, SCOPE, Hands, Keyboard, Mouse, call, clipboard, fill_form, open_form, sign_in
from tests.browser.conftest import NewPage
from tests.servers import Server

# Names a folder: each step of each walk is then kept there as a picture, for people.
PICTURES = os.environ.get("WALK_PICTURES", "")
HTMX = re.compile(r"/static/vendor/htmx")


@dataclass(frozen=True)
class Way:
    """How a walk is gone."""

    width: int = 1280
    height: int = 900
    scripts: bool = True
    htmx: bool = True
    hands: Callable[[Page], Hands] = Mouse


WAYS = {
    "with scripts": Way(),
    "on a phone": Way(320, 568),
    "without scripts": Way(scripts=False),
    "without htmx": Way(htmx=False),
    "by keyboard": Way(hands=Keyboard),
    "by keyboard, without scripts, on a phone": Way(320, 568, scripts=False, hands=Keyboard),
}


@pytest.mark.parametrize("way", WAYS)
def test_rio_generates_a_key_that_works_until_he_deactivates_it(
    way: str, new_page: NewPage, live_server: Server
) -> None:
    chosen = WAYS[way]
    page = new_page(
        scripts=chosen.scripts,
        width=chosen.width,
        height=chosen.height,
        permissions=["clipboard-read", "clipboard-write"],
    )
    if not chosen.htmx:
        page.route(HTMX, lambda route: route.fulfill(status=404))
    before = last_rows(live_server)
    walk(chosen.hands(page), live_server, way, in_dialog=chosen.scripts and chosen.htmx)
