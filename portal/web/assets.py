"""Styles, scripts and icons: at addresses that change with their content, so that browsers keep them, and compressed.

Only these are: a page has secrets beside what others choose, whose length must not tell (BREACH).
"""

import gzip
import hashlib
from functools import cache
from pathlib import Path

from flask import Flask, Response, request, url_for

from portal.web.guards import anybody

_YEAR = 31_536_000  # seconds
_TEXTS = ("text/css", "text/javascript", "image/svg+xml")


def register(app: Flask, folder: Path) -> None:
    """Serve the files of a folder below /static/, and let templates ask for their addresses by `asset`."""
    stamps = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:10]
        for path in folder.rglob("*")
        if path.is_file()
    }

    @cache
    def packed(name: str) -> bytes:
        return gzip.compress((folder / name).read_bytes(), mtime=0)

    @anybody
    def static(filename: str) -> Response:
        response = app.send_static_file(filename)
        if response.mimetype in _TEXTS:
            response.vary.add("Accept-Encoding")
            if response.status_code == 200 and request.accept_encodings["gzip"]:
                response.close()
                response.direct_passthrough = False
                response.set_data(packed(filename))
                response.content_encoding = "gzip"
                response.headers.remove("Accept-Ranges")
                response.set_etag(response.get_etag()[0] or "", weak=True)  # the same file, in other bytes
        return response

    @cache
    def asset(name: str) -> str:
        return url_for("static", filename=name, h=stamps.get(name))

    app.static_folder = str(folder)
    app.add_url_rule("/static/<path:filename>", "static", static)
    app.config["SEND_FILE_MAX_AGE_DEFAULT"] = _YEAR
    app.jinja_env.globals["asset"] = asset
