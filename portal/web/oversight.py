"""The audit log with its exports and its check, and the explanation of refused requests."""

from flask import Blueprint

pages = Blueprint("oversight", __name__, url_prefix="/w/<slug:ws>")
