"""safe-api-keys, as its quickstart leaves it, or tuned: no notes of the last use. No cache: it would answer stale.

As a program it stores some keys and prints a header's value for each.
"""

import json
import os
import sys

from flask import Flask, jsonify
from safe_api_keys import KeyManager
from safe_api_keys.contrib.flask import APIKeys
from safe_api_keys.stores import SQLiteStore

ANSWER = json.loads(os.environ["PEER_ANSWER"])
app = Flask(__name__)
store = SQLiteStore(os.environ["PEER_DATABASE"])
tuning = {"touch_interval": None} if os.environ["PEER_VARIANT"] == "tuned" else {}
manager = KeyManager(store, prefix="peer_live", pepper=b"p" * 32, **tuning)
keys = APIKeys(manager, app)


@app.get("/api/v1/me")
@keys.required(scopes=["accounts:read"])
def me():
    return jsonify(ANSWER)


@app.get("/healthz")
def healthz():
    return ""


if __name__ == "__main__":
    for n in range(int(sys.argv[1])):
        print("Bearer", manager.issue(f"owner {n}", scopes=["accounts:read"]).raw_key)
