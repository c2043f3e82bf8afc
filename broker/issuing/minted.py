"""Rule 1: what GitHub returns is compared with what was asked; pure."""

from collections.abc import Collection

from broker.errors import UntrustedReplyError
from broker.model import LiveToken, MintedToken, Scope, token_sha256


def check_minted(
    minted: MintedToken, scope: Scope, *, installation_id: int, epoch: int, accept_implicit: Collection[str]
) -> LiveToken:
    """Return the token if it reaches exactly what was asked for, at level read.

    Args:
        minted: GitHub's reply.
        scope: what was asked for.
        installation_id: whose token it is.
        epoch: the store's epoch when the mint began.
        accept_implicit: read permissions that GitHub may add by itself, besides ``metadata``.

    Raises:
        UntrustedReplyError: more than was asked for, or less. The token must be revoked.
    """
    asked = set(scope.permissions)
    beyond_read = sorted(name for name, level in minted.permissions.items() if level != "read")
    if beyond_read:
        raise UntrustedReplyError(f"GitHub granted more than read: {', '.join(beyond_read)}")
    unasked = set(minted.permissions) - asked - {"metadata", *accept_implicit}
    if unasked:
        raise UntrustedReplyError(
            f"GitHub granted permissions that were not asked for: {', '.join(sorted(unasked))}; "
            "if GitHub now adds them by itself, name them in BROKER_ACCEPT_IMPLICIT_PERMISSIONS"
        )
    missing = asked - set(minted.permissions) - {"metadata"}
    if missing:
        raise UntrustedReplyError(f"GitHub left out permissions: {', '.join(sorted(missing))}")
    names = minted.repositories
    if scope.repositories is None:
        if any(name.partition("/")[0].lower() != scope.owner for name in names or ()):
            raise UntrustedReplyError("GitHub's token reaches repositories of another owner")
        names = None
    else:
        if names is None or minted.selection == "all":
            raise UntrustedReplyError("GitHub did not confirm the repositories that were asked for")
        if sorted(name.lower() for name in names) != list(scope.repositories):
            raise UntrustedReplyError("GitHub's token reaches other repositories than those asked for")
    return LiveToken(
        token=minted.token,
        sha256=token_sha256(minted.token),
        scope_id=scope.id,
        epoch=epoch,
        installation_id=installation_id,
        expires_at=minted.expires_at,
        repositories=names,
        permissions=tuple(sorted(minted.permissions)),
    )
