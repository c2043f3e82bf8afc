"""`broker-cli github`: the group of what concerns GitHub."""

from broker_cli.lazy import LazyGroup

github = LazyGroup(
    name="github",
    lazy={
        "token": "broker_cli.commands.github_token:token",
        "ls": "broker_cli.commands.github_ls:ls",
        "setup": "broker_cli.commands.github_setup:setup",
    },
    help="Tokens, repositories, the app's page.",
)
