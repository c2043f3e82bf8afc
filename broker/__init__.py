"""GitHub App token broker: the service."""
