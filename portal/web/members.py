"""People and API members of a workspace: who they are, what they may do, and what leaves with them."""

from flask import Blueprint

pages = Blueprint("members", __name__, url_prefix="/w/<slug:ws>")
