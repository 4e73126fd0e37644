"""What the portal can do. Functions take (session, actor, what, *, details), never commit, and know no HTTP."""
