"""What the portal can do. Functions take (session, actor, what, *, details) and know no HTTP.

They leave the commit to their caller, but for what has to last without one: refusals (`audit.transaction`), usage,
mails on their way out (`outbox`) and an export, which reads the log piece by piece.
"""
