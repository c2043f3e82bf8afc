"""GitHub: the only room that knows its API."""
