"""Styles and scripts as browsers get them."""

import gzip

import pytest

from app import ROOT
from tests.cast import Cast

APP = "/static/app.js"
TEXT = (ROOT / APP[1:]).read_bytes()


def test_pages_name_files_by_their_content_and_browsers_keep_them(cast: Cast) -> None:
    page = cast.stranger().get("/login").text
    address = page.partition(f'src="{APP}')[2].partition('"')[0]
    reply = cast.stranger().browser.get(APP + address)
    assert address.startswith("?h=")
    assert reply.headers["Cache-Control"] == "public, max-age=31536000"
    assert reply.data == TEXT


@pytest.mark.parametrize(
    ("accepted", "is_packed"), [("gzip, br", True), ("*", True), ("gzip;q=0", False), ("br", False), ("", False)]
)
def test_what_is_text_comes_compressed_to_who_takes_it(cast: Cast, accepted: str, is_packed: bool) -> None:
    browser = cast.stranger().browser
    reply = browser.get(APP, headers={"Accept-Encoding": accepted})
    assert reply.headers.get("Content-Encoding") == ("gzip" if is_packed else None)
    assert (gzip.decompress(reply.data) if is_packed else reply.data) == TEXT
    assert int(reply.headers["Content-Length"]) == len(reply.data)
    assert "Accept-Encoding" in reply.headers["Vary"]
    known = {"Accept-Encoding": accepted, "If-None-Match": reply.headers["ETag"]}
    again = browser.get(APP, headers=known)
    assert (again.status_code, again.headers["Cache-Control"]) == (304, reply.headers["Cache-Control"])
    part = browser.get(
        APP, headers={"Accept-Encoding": accepted, "Range": "bytes=10-", "If-Range": reply.headers["ETag"]}
    )
    assert (part.status_code, part.data) == (200, reply.data)


@pytest.mark.parametrize("name", ["./app.js", "vendor/../app.js", "nope/../app.js", "app.js/", "../app.py", "vendor"])
def test_a_file_has_one_name(cast: Cast, name: str) -> None:
    assert cast.stranger().browser.get(f"/static/{name}", headers={"Accept-Encoding": "gzip"}).status_code == 404


def test_pages_are_not_compressed(cast: Cast) -> None:
    """Their length would tell how well what somebody chose fits what is secret in them (BREACH)."""
    page = cast.ana.get("/w/acme/api/keys", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in page.headers
