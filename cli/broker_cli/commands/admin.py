"""`broker-cli admin`: the group of what needs an admin key."""

from broker_cli.lazy import LazyGroup

admin = LazyGroup(
    name="admin",
    lazy={
        "keys": "broker_cli.commands.admin:keys",
        "revoke": "broker_cli.commands.admin_revoke:revoke",
        "block": "broker_cli.commands.admin_blocks:block",
        "unblock": "broker_cli.commands.admin_blocks:unblock",
        "blocks": "broker_cli.commands.admin_blocks:blocks",
        "owners": "broker_cli.commands.admin:owners",
        "installations": "broker_cli.commands.admin:installations",
        "audit": "broker_cli.commands.admin_audit:audit",
    },
    help="Administer the broker: keys, revocations, blocks, installations, the audit. Needs an admin key.",
)

keys = LazyGroup(
    name="keys",
    lazy={
        "create": "broker_cli.commands.admin_keys:create",
        "list": "broker_cli.commands.admin_keys:list_",
        "show": "broker_cli.commands.admin_keys:show",
        "update": "broker_cli.commands.admin_keys:update",
        "rotate": "broker_cli.commands.admin_keys:rotate",
        "revoke": "broker_cli.commands.admin_keys:revoke",
    },
    help="API keys: make, look at, change and end them.",
)

owners = LazyGroup(
    name="owners",
    lazy={"accept": "broker_cli.commands.admin_installations:accept"},
    help="GitHub accounts that the app is installed on.",
)

installations = LazyGroup(
    name="installations",
    lazy={
        "list": "broker_cli.commands.admin_installations:list_",
        "sync": "broker_cli.commands.admin_installations:sync",
    },
    help="Where the app is installed.",
)
