"""Decisions from values. Pure Python: knows neither Flask nor the database."""
