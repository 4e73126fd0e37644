"""Styles, scripts and icons: at addresses that change with their content, so that browsers keep them, and compressed.

Only these are: a page has secrets beside what others choose, whose length must not tell (BREACH).
"""

import gzip
import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from flask import Flask, Response, abort, request, url_for

from portal.web.guards import anybody

_YEAR = 31_536_000  # seconds
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}  # else plain text


class _File(NamedTuple):
    mimetype: str
    plain: bytes
    packed: bytes
    stamp: str  # of its content


def register(app: Flask, folder: Path) -> None:
    """Serve the files of a folder below /static/ as they are now; templates ask for their addresses by `asset`."""
    files = {
        path.relative_to(folder).as_posix(): _read(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }

    @anybody
    def static(filename: str) -> Response:
        file = files.get(filename) or abort(404)
        is_packed = bool(request.accept_encodings["gzip"])
        response = Response(file.packed if is_packed else file.plain, mimetype=file.mimetype)
        if is_packed:
            response.content_encoding = "gzip"
        response.set_etag(f"{file.stamp}-gzip" if is_packed else file.stamp)
        response.vary.add("Accept-Encoding")
        response.cache_control.public = True
        response.cache_control.max_age = _YEAR
        response.make_conditional(request)
        return response

    @cache
    def asset(name: str) -> str:
        return url_for("static", filename=name, h=files[name].stamp)

    app.add_url_rule("/static/<path:filename>", "static", static)
    app.jinja_env.globals["asset"] = asset


def _read(path: Path) -> _File:
    content = path.read_bytes()
    stamp = hashlib.sha256(content).hexdigest()[:10]
    return _File(_TYPES.get(path.suffix, "text/plain"), content, gzip.compress(content, mtime=0), stamp)
