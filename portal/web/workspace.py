"""What administrators set up in a workspace: solutions, apps and policy."""

from flask import Blueprint

pages = Blueprint("workspace", __name__, url_prefix="/w/<slug:ws>")
