"""The client of the GitHub App token broker."""

__version__ = "0.1.0"
