"""The ways a command can fail, each with its exit status; the text is for the person who reads the log."""


class BrokerCliError(Exception):
    """Base of all; the text is one line without secrets."""

    exit_code = 4


class RefusedError(BrokerCliError):
    """The broker understood and said no; `code` is its word for why, or empty."""

    exit_code = 1

    def __init__(self, text: str, *, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class UsageError(BrokerCliError):
    """Wrong arguments or settings: trying again changes nothing."""

    exit_code = 2


class ApiKeyError(BrokerCliError):
    """The API key is missing, malformed or refused."""

    exit_code = 3


class UnreachableError(BrokerCliError):
    """The broker, or GitHub behind it, gave no usable answer in time."""


class TransientError(UnreachableError):
    """A failure of one try that may be gone at the next."""

    unsent = False
