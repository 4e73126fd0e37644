"""Latchkey, a self-service API-key portal. The map:

settings   what the environment decides, read once
metrics    numbers that all processes share
mail       handing mails over
logs       redacted log lines
rules      decisions from values: access, credentials, text, payloads, errors; no Flask, no database
store      tables and transactions; no Flask
services   what the portal can do, one noun a module: (session, actor, what) in, values out
web        HTTP: pages, the REST API, their one error table; no SQL
cli, demo  the same services from the command line
Imports point down this list's rooms only: rules < store < services < web and cli. `app.py` puts it together.
"""
