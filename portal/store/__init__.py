"""Tables and transactions. SQLAlchemy; knows nothing of Flask or of what the portal is for."""
