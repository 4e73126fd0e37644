"""The cast of all tests: ana (admin), lea (team lead), max, rio (read-only), zoe (of another workspace), and keys.

People sign in and press buttons through HTTP as a browser without scripts would; nobody reaches round the portal.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from portal.demo import PASSWORD

KEY_TEXT = re.compile(r"sk_(?:live|test)_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}")
_KEY_ID = re.compile(r'data-key="(key_\w+)"')
_CSRF = re.compile(r'name="csrf_token"\s+value="([^"]+)"')
_WORKSPACES = {"zoe": "globex"}
HTMX = {"HX-Request": "true"}


@dataclass(frozen=True)
class MadeKey:
    """A key as its maker got it: the id, and the text that is shown once."""

    id: str
    text: str

    @property
    def bearer(self) -> dict[str, str]:
        """The header that a call with this key carries."""
        return {"Authorization": f"Bearer {self.text}"}


class Person:
    """Somebody in front of a browser."""

    def __init__(self, app: Flask, name: str) -> None:
        self.name = name
        self.workspace = _WORKSPACES.get(name, "acme")
        self.email = f"{name}@{self.workspace}.test"
        self.browser: FlaskClient = app.test_client()
        self._token = ""

    def sign_in(self, password: str = PASSWORD) -> TestResponse:
        """Fill in the sign-in form."""
        self.get("/login")
        answer = self.browser.post(
            "/login", data={"csrf_token": self._token, "email": self.email, "password": password}
        )
        self._token = ""
        return answer

    def get(self, path: str, **options: Any) -> TestResponse:
        """Open an address; remember the page's CSRF token."""
        return self._seen(self.browser.get(self._full(path), **options))

    def post(self, path: str, data: Mapping[str, Any] | None = None, **options: Any) -> TestResponse:
        """Send a form with the token of the page seen last."""
        if not self._token:
            self.get(f"/w/{self.workspace}/api/keys")
        return self._seen(
            self.browser.post(self._full(path), data={"csrf_token": self._token, **(data or {})}, **options)
        )

    def form(self, **answers: Any) -> dict[str, Any]:
        """Give the answers of a generate form that is fine for rio, but for those named."""
        page = self.get("keys/new").text
        ids = {name: found[1] for name in ("owner", "form_id") if (found := _value(page, name))}
        return {
            "name": "Nightly export",
            "note": "",
            "environment": "live",
            "scopes": ["tasks:read"],
            "expires": "90d",
            **ids,
            **answers,
        }

    def generate(self, scopes: Sequence[str] = ("tasks:read",), **answers: Any) -> MadeKey:
        """Generate a key; read its id and text off the reveal."""
        return self._made(self.post("keys", self.form(scopes=list(scopes), **answers)))

    def rotate(self, key: MadeKey, **answers: Any) -> MadeKey:
        """Rotate a key with its own answers and 24 hours of overlap, but for those named; read the new one off."""
        page = self.get(f"keys/{key.id}/rotate").text
        form_id = _value(page, "form_id")
        scopes = re.findall(r'name="scopes"\s+value="([^"]+)"', page)
        usual = {"scopes": scopes, "overlap": "24h", "expires": "90d", "form_id": form_id[1] if form_id else ""}
        return self._made(self.post(f"keys/{key.id}/rotate", usual | answers))

    def _made(self, reply: TestResponse) -> MadeKey:
        text, key_id = KEY_TEXT.search(reply.text), _KEY_ID.search(reply.text)
        assert reply.status_code == 200, reply.text
        assert text and key_id, reply.text
        return MadeKey(key_id[1], text[0])

    def _full(self, path: str) -> str:
        return path if path.startswith("/") else f"/w/{self.workspace}/api/{path}"

    def _seen(self, reply: TestResponse) -> TestResponse:
        if found := _CSRF.search(reply.text if "html" in (reply.content_type or "") else ""):
            self._token = found[1]
        return reply


class Cast:
    """Everybody, made on first mention and signed in."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self._people: dict[str, Person] = {}

    def __getattr__(self, name: str) -> Person:
        if name not in self._people:
            person = Person(self.app, name)
            reply = person.sign_in()
            assert reply.status_code == 303, reply.text
            self._people[name] = person
        return self._people[name]

    def stranger(self, name: str = "nobody") -> Person:
        """Somebody with a browser who has not signed in."""
        return Person(self.app, name)

    def call(self, method: str, path: str, key: MadeKey | None = None, **options: Any) -> TestResponse:
        """Call the REST API as an integration would."""
        headers = {**(key.bearer if key else {}), **options.pop("headers", {})}
        return self.app.test_client(use_cookies=False).open(f"/api/v1{path}", method=method, headers=headers, **options)


def _value(page: str, name: str) -> re.Match[str] | None:
    """Find the value of the field of a name, whichever way round its attributes stand."""
    tag = re.search(rf'<input[^>]*\bname="{name}"[^>]*>', page)
    return re.search(r'\bvalue="([^"]+)"', tag[0]) if tag else None
