"""The error tree; no I/O, knows no HTTP.

BrokerError
├── RequestError                what was asked is wrong
│   ├── MalformedRequestError       not even JSON
│   ├── InvalidRequestError         wrong shape or values
│   ├── NotReadOnlyError            something other than read was asked
│   ├── UnknownHostError            another host than the one served
│   ├── PayloadTooLargeError, UnsupportedMediaTypeError, NotFoundError, MethodNotAllowedError
│   └── ConflictError               the thing asked for cannot be changed this way
├── RefusedError                who asks may not
│   ├── InvalidApiKeyError          one answer for missing, malformed, unknown, expired, revoked
│   ├── InvalidSignatureError       a webhook that GitHub did not sign with our secret
│   ├── ForbiddenError              policy
│   ├── BlockedError                an admin said no, or the owner's account changed
│   └── RateLimitedError            the key's own limit or mint budget
├── GitHubError                 what GitHub said
│   ├── NotInstalledError           the app is not there, or does not see the repository
│   │   ├── InstallationGoneError       404 on minting: look the installation up again
│   │   └── RenamedError                the name is an old one
│   ├── InstallationSuspendedError
│   ├── PermissionNotGrantedError
│   ├── GitHubRateLimitedError      GitHub said wait
│   ├── GitHubRejectedAppError      the app JWT was refused
│   ├── CodeSpentError              the code of the manifest flow works no more (`broker setup` only)
│   └── GitHubUnavailableError      failed after retries
│       ├── GitHubTimeoutError          no answer in time
│       └── UntrustedReplyError         an answer that is not what was asked for
├── StoreError                  the store cannot answer: always 503, never "no such key"
│   ├── StoreUnavailableError       down, slow, refused
│   ├── OvertakenError              something ended what was asked for while it was made: look again
│   └── StoreLostError              not the store this process has seen, or it cannot be opened
│       └── StoreRegressedError         that store, but without what was written last
├── ClientWheelsError           the client cannot be given out: wrongly built or installed
├── SettingsError               the start stops, exit status 2
├── SetupError                  an app could not be set up (`broker setup` only)
└── PrivateKeyError             a key that cannot sign app JWTs

Each error speaks twice: ``public`` goes to the caller, ``str(error)`` to the operator's log.
Neither ever holds a token, a key's secret or the private key.
"""

from typing import ClassVar


class BrokerError(Exception):
    """Base of all errors that this service raises on purpose.

    Args:
        detail: what the operator reads; defaults to the public text.
        public: what the caller reads, where an instance can say more than its class.
        retry_after_s: seconds after which another try makes sense.
    """

    code: ClassVar[str] = "internal_error"
    public: str = "The broker failed. The request id finds the cause in its log."

    def __init__(
        self,
        detail: str | None = None,
        *,
        public: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        if public is not None:
            self.public = public
        self.retry_after_s = retry_after_s
        super().__init__(detail or self.public)


class RequestError(BrokerError):
    """What was asked is wrong."""

    code = "invalid_request"
    public = "The request is not valid."


class MalformedRequestError(RequestError):
    """The body is not the JSON it has to be."""

    public = "The body is not valid JSON."


class InvalidRequestError(RequestError):
    """Wrong shape or values; ``public`` names the field."""


class NotReadOnlyError(RequestError):
    """A permission at a level other than read was asked for."""

    code = "not_read_only"
    public = "Only permissions at level read are given."


class UnknownHostError(RequestError):
    """The host asked for is not the one this broker serves."""

    code = "unknown_host"
    public = "This broker does not serve that host."


class PayloadTooLargeError(RequestError):
    """The body is larger than allowed."""

    code = "payload_too_large"
    public = "The body is larger than allowed."


class UnsupportedMediaTypeError(RequestError):
    """The body's type or encoding is not supported."""

    code = "unsupported_media_type"
    public = "Send application/json, without Content-Encoding."


class NotFoundError(RequestError):
    """There is nothing under that path or identity."""

    code = "not_found"
    public = "There is nothing here."


class MethodNotAllowedError(RequestError):
    """The path exists, the method does not."""

    code = "method_not_allowed"
    public = "This method is not allowed here."


class ConflictError(RequestError):
    """The thing named cannot be changed in this way."""

    code = "conflict"
    public = "That cannot be changed in this way."


class RefusedError(BrokerError):
    """Who asks may not."""

    code = "forbidden"
    public = "Not allowed."


class InvalidApiKeyError(RefusedError):
    """One answer for a missing, malformed, unknown, expired or revoked key."""

    code = "invalid_api_key"
    public = "The API key is missing, malformed, unknown, expired or revoked."


class InvalidSignatureError(RefusedError):
    """A webhook without signature, or with one that no configured secret makes."""

    code = "invalid_signature"
    public = "The signature is missing or wrong."


class ForbiddenError(RefusedError):
    """The key's policy does not allow it; decided before GitHub or any cache is asked."""

    public = "This key's policy does not allow that."


class BlockedError(RefusedError):
    """Blocked by an admin, or the owner's account is not the one first seen."""

    code = "blocked"
    public = "An admin of the broker has blocked this."


class RateLimitedError(RefusedError):
    """The key's own limit, or its budget of fresh mints, is used up."""

    code = "rate_limited"
    public = "This key's limit is used up for now."


class GitHubError(BrokerError):
    """What GitHub said, or did not say."""

    code = "github_unavailable"
    public = "GitHub could not be asked."


class NotInstalledError(GitHubError):
    """The app is not installed on the owner, or cannot reach the repository."""

    code = "not_installed"
    public = "The app is not installed on this owner, or cannot reach this repository."


class InstallationGoneError(NotInstalledError):
    """GitHub answered 404 to a mint: the installation id is stale (reinstalled or removed)."""


class RenamedError(NotInstalledError):
    """The name is an old one. GitHub's redirect is never followed.

    Following would quietly point a policy that was written for the old name at something else.
    """

    public = "This repository or its owner was renamed or transferred on GitHub. Ask for it by its new name."


class InstallationSuspendedError(GitHubError):
    """The owner suspended the app."""

    code = "installation_suspended"
    public = "The owner has suspended the app."


class PermissionNotGrantedError(GitHubError):
    """The installation has not granted a permission that was asked for."""

    code = "permission_not_granted"
    public = "The owner has not granted the app a permission that was asked for."


class GitHubRateLimitedError(GitHubError):
    """GitHub said wait.

    Args:
        detail: what the operator reads.
        retry_after_s: how long to wait, from GitHub's headers.
        whole_app: True when the limit hit a call of the app itself (JWT), not one installation.
    """

    code = "github_rate_limited"
    public = "GitHub asks to wait."

    def __init__(
        self,
        detail: str | None = None,
        *,
        public: str | None = None,
        retry_after_s: float | None = None,
        whole_app: bool = False,
    ) -> None:
        self.whole_app = whole_app
        super().__init__(detail, public=public, retry_after_s=retry_after_s)


class GitHubRejectedAppError(GitHubError):
    """GitHub refused the app's JWT: wrong key or id. The operator's problem."""

    code = "github_rejected_app"
    public = "GitHub does not accept the broker's app credentials. The broker's operator has to act."


class CodeSpentError(GitHubError):
    """The code of the App manifest flow was used, is older than an hour, or never was one."""

    public = "GitHub does not know this code: it works once, within the hour."


class GitHubUnavailableError(GitHubError):
    """GitHub failed after retries."""

    public = "GitHub failed to answer. Try again later."


class GitHubTimeoutError(GitHubUnavailableError):
    """GitHub did not answer in time."""

    public = "GitHub did not answer in time. Try again later."


class UntrustedReplyError(GitHubUnavailableError):
    """GitHub's answer is not what was asked for; what it held is revoked and never handed out."""

    public = "GitHub's answer was not what was asked for, so it was refused."


class StoreError(BrokerError):
    """The store cannot answer: always 503, never a verdict about a key."""

    code = "store_unavailable"
    public = "The broker's store is not available. Keep your key and try again."

    def __init__(
        self, detail: str | None = None, *, public: str | None = None, retry_after_s: float | None = 2.0
    ) -> None:
        super().__init__(detail, public=public, retry_after_s=retry_after_s)


class StoreUnavailableError(StoreError):
    """Down, slow, or refusing."""


class OvertakenError(StoreUnavailableError):
    """A mint's result came too late: a lease, a key or a scope ended meanwhile. Look again."""


class StoreLostError(StoreError):
    """Emptied, swapped, an older copy, or sealed with keys that are not configured."""


class StoreRegressedError(StoreLostError):
    """The right store, but something that was acknowledged is gone: a failover, or an older copy."""


class SettingsError(BrokerError):
    """The configuration is wrong; the start stops with exit status 2.

    Args:
        problems: one line per problem, each naming its variable and no secret.
    """

    code = "settings"

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("; ".join(problems), public="The broker's settings are wrong.")


class SetupError(BrokerError):
    """An app could not be set up; the text says what to do."""

    code = "setup"


class PrivateKeyError(BrokerError):
    """A private key that cannot sign app JWTs; the text names the reason, never the key."""

    code = "private_key"


class ClientWheelsError(BrokerError):
    """There is no client to give out. Never "not found": an installer would go on to another index."""

    public = "This broker has no client to give out: it was built or installed without one."
