"""The review of a workspace's keys: findings, one recommended action each, and what was looked at."""

from flask import Blueprint

pages = Blueprint("review", __name__, url_prefix="/w/<slug:ws>/review")
