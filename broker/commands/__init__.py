"""The subcommands of `broker`."""
