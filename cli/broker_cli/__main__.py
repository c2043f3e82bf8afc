"""Command line of the client."""


def main() -> None:
    """Run."""
