"""What templates are made of: no indentation but where white space is text, and addresses that are made once."""

import pytest
from flask import Flask, render_template_string, url_for

from portal.web.templates import address


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("<p>\n    one\n\ttwo\n</p>", "<p>\none\ntwo\n</p>"),
        ("<i>a</i>\n  {% if true %}\n    <i>b</i>\n  {% endif %}\n  <i>c</i>", "<i>a</i>\n<i>b</i>\n<i>c</i>"),
        ("a {% if true %}b{% endif %}\n  c", "a b\nc"),
        ("<pre>\n  kept\n</pre>\n  gone", "<pre>\n  kept\n</pre>\ngone"),
        ("<textarea>\n  kept</textarea><pre>\n kept</pre>", "<textarea>\n  kept</textarea><pre>\n kept</pre>"),
    ],
)  # fmt: skip
def test_indentation_is_taken_out_but_where_white_space_is_text(app: Flask, source: str, written: str) -> None:
    with app.test_request_context():
        assert render_template_string(source) == written


def test_what_is_put_into_a_page_keeps_its_white_space(app: Flask) -> None:
    with app.test_request_context():
        assert render_template_string("<p>\n  {{ typed }}</p>", typed="a\n  b") == "<p>\na\n  b</p>"


def test_an_error_names_its_line_in_the_template(app: Flask) -> None:
    source = "<p>\n  {% if true %}\n\n    <i>\n  {{ 1 / 0 }}\n  {% endif %}"
    with app.test_request_context(), pytest.raises(ZeroDivisionError) as error:
        render_template_string(source)
    assert error.traceback[-1].lineno + 1 == 5


def test_an_address_is_the_one_of_its_page_however_often_it_is_asked_for(app: Flask) -> None:
    with app.test_request_context():
        for ws in ("acme", "globex", "acme"):
            assert address("keys.index", ws=ws) == url_for("keys.index", ws=ws)
            assert address("keys.index", ws=ws, q="a b") == url_for("keys.index", ws=ws, q="a b")
            assert address("keys.detail", ws=ws, key_id="key_1") == url_for("keys.detail", ws=ws, key_id="key_1")
        assert address("account.index") == url_for("account.index")
        assert address("account.index", _external=True) == url_for("account.index", _external=True)
