"""The client of the GitHub App token broker."""
