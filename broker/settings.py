"""Settings: the only reader of the environment, of ``.env`` and of secret files.

A wrong or missing setting becomes one line that names its variable; no line holds a value that could
be a secret.
"""

import base64
import binascii
import ipaddress
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from broker.access import keys
from broker.errors import BrokerError, PrivateKeyError, SettingsError
from broker.github import pages
from broker.github.private_key import AppPrivateKey, parse_private_keys
from broker.model import Secret, parse_owner

PREFIX: Final = "BROKER_"
SECRET_FIELDS: Final = (
    "github_private_key",
    "github_webhook_secret",
    "encryption_keys",
    "admin_key",
    "store_url",
    "proxy_url",
)
RELOADED_FIELDS: Final = ("github_private_key", "github_webhook_secret", "encryption_keys", "admin_key")
"""Secrets whose files are read again when they change; store and proxy stay as they were at the start."""

_MAX_SECRET_BYTES: Final = 256 * 1024
TLS_PROBLEM: Final = (
    f"{PREFIX}TLS_CERT_FILE, {PREFIX}TLS_KEY_FILE: no PEM certificate and the key that belongs to it"
)
_ENCRYPTION_KEY_BYTES: Final = 32
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
_UNIT_S: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: object) -> object:
    """Return seconds for ``90``, ``45s``, ``30m``, ``12h``, ``90d``; other types pass.

    Raises:
        ValueError: the text is no duration.
    """
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError("write seconds, or a number with s, m, h or d, such as 90d")
    return float(match[1]) * _UNIT_S[match[2]]


def _split(value: object) -> object:
    """Return the parts of a comma-separated text."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


Seconds = Annotated[float, BeforeValidator(parse_duration)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


def _named_files(environment: Mapping[str, str | None]) -> tuple[dict[str, tuple[Path, ...]], list[str]]:
    """Return the files that ``BROKER_<NAME>_FILE`` name, by field, and problems.

    The private key, webhook secrets and encryption keys may name several files, comma-separated.
    """
    files: dict[str, tuple[Path, ...]] = {}
    problems: list[str] = []
    for name in SECRET_FIELDS:
        direct = f"{PREFIX}{name.upper()}"
        named = (environment.get(f"{direct}_FILE") or "").strip()
        if named and (environment.get(direct) or "").strip():
            problems.append(f"{direct}_FILE: set this or {direct}, not both")
        elif named:
            files[name] = tuple(Path(part.strip()) for part in named.split(","))
    return files, problems


def _read_files(name: str, paths: Sequence[Path]) -> tuple[str | None, list[str]]:
    """Return what the files of one field hold, comma-separated, or None with the problems."""
    variable = f"{PREFIX}{name.upper()}_FILE"
    problems: list[str] = []
    texts: list[str] = []
    for path in paths:
        try:
            text = _read_secret(path)
            if not text:
                problems.append(f"{variable}: {path} is empty")
            texts.append(text)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text file of a secret's size"
            problems.append(f"{variable}: {path} cannot be read: {reason}")
    return (None if problems else ",".join(texts)), problems


def _read_secret(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(_MAX_SECRET_BYTES + 1)
    if len(content) > _MAX_SECRET_BYTES:
        raise ValueError("too large")
    return content.decode().strip()


class GitHubPlace(BaseSettings):
    """Which GitHub, and the way to it; known before there is an app."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
    )

    github_api_url: str = pages.GITHUB_API
    github_url: str = pages.GITHUB
    github_ca_file: Path | None = None
    proxy_url: SecretStr | None = None

    @field_validator("github_api_url", "github_url")
    @classmethod
    def _https(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            _ = parts.port
        except ValueError:  # its text may hold the value
            raise ValueError("write a plain URL such as https://api.github.com") from None
        if parts.username or parts.password or parts.query or parts.fragment or not parts.hostname:
            raise ValueError("write a plain URL such as https://api.github.com")
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
            raise ValueError("must begin with https:// (http:// only for loopback hosts)")
        return value.rstrip("/")

    @field_validator("proxy_url")
    @classmethod
    def _proxy(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value.get_secret_value().strip())
            fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            fine = False
        if not fine:
            raise ValueError(
                "write http://host:port or https://host:port, with user:password@ if it needs them"
            )
        return value


class Settings(GitHubPlace):
    """What the operator decides; one field per variable ``BROKER_<NAME>``."""

    github_client_id: str | None = None
    github_app_id: str | None = None
    github_private_key: SecretStr
    github_webhook_secret: SecretStr | None = None
    store_url: SecretStr = SecretStr("sqlite:///broker.db")
    encryption_keys: SecretStr | None = None
    admin_key: SecretStr | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    trusted_proxies: Words = ()
    allowed_owners: Words = ()
    mint_budget: int = Field(120, ge=1, le=100_000)
    audit_retention: Seconds = Field(90 * 86400.0, ge=3600, le=3650 * 86400)
    audit_max_events: int = Field(1_000_000, ge=1000)
    accept_implicit_permissions: Words = ()
    request_timeout: Seconds = Field(25.0, ge=1, le=300)
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    workers: int = Field(1, ge=1, le=64)
    metrics_port: int | None = Field(None, ge=1, le=65535)
    token_min_ttl: Seconds = Field(300.0, ge=0, le=3000)
    token_refresh_ahead: Seconds = Field(900.0, ge=0, le=3300)
    installation_ttl: Seconds = Field(600.0, ge=1, le=86400)
    failure_cooldown: Seconds = Field(10.0, ge=0.1, le=600)
    probe_new_tokens: Literal["off", "git"] = "off"
    log_format: Literal["console", "json"] | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    _secret_files: Mapping[str, tuple[Path, ...]] = PrivateAttr(default_factory=dict)

    @field_validator("github_client_id", "github_app_id")
    @classmethod
    def _stripped(cls, value: str | None) -> str | None:
        if value is None:
            return None
        value = value.strip()
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", value):
            raise ValueError("not an id as GitHub shows it on the app's page")
        return value

    @field_validator("github_app_id")
    @classmethod
    def _number(cls, value: str | None) -> str | None:
        if value is not None and not value.isdecimal():
            raise ValueError("the App ID is a number; the Client ID goes into BROKER_GITHUB_CLIENT_ID")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for part in value:
            try:
                ipaddress.ip_network(part)
            except ValueError as error:
                raise ValueError("write CIDRs such as 10.0.0.0/8, comma-separated") from error
        return value

    @field_validator("allowed_owners")
    @classmethod
    def _owners(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for part in value:
            try:
                parse_owner(part)
            except BrokerError as error:
                raise ValueError("write owners (logins), comma-separated") from error
        return tuple(part.lower() for part in value)

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if (self.github_client_id is None) == (self.github_app_id is None):
            raise ValueError(
                "BROKER_GITHUB_CLIENT_ID or BROKER_GITHUB_APP_ID: exactly one is needed "
                "(the Client ID is what GitHub recommends)"
            )
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("BROKER_TLS_CERT_FILE and BROKER_TLS_KEY_FILE: set both or none")
        if self.metrics_port is not None and self.metrics_port == self.port:
            raise ValueError("BROKER_METRICS_PORT must not be BROKER_PORT; without it metrics are there")
        if self.token_min_ttl > self.token_refresh_ahead:
            raise ValueError("BROKER_TOKEN_MIN_TTL must not be above BROKER_TOKEN_REFRESH_AHEAD")
        for name in ("github_ca_file", "tls_cert_file", "tls_key_file"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"{PREFIX}{name.upper()}: {path} is not a file")
        return self

    # -- what the texts mean ---------------------------------------------------------------------

    @property
    def issuer(self) -> str:
        """``iss`` of the app JWT."""
        return self.github_client_id or self.github_app_id or ""

    @property
    def github_host(self) -> str:
        """Host (and port, if one is written) of ``BROKER_GITHUB_URL``, lower case."""
        return urlsplit(self.github_url).netloc.lower()

    def private_keys(self) -> tuple[AppPrivateKey, ...]:
        """Return the app's private keys, in the order in which they are tried.

        Raises:
            PrivateKeyError: one of them is no RSA key that can sign.
        """
        text = self.github_private_key.get_secret_value()
        # The headers of an encrypted PKCS#1 key hold a comma: its refusal is to name the reason.
        parts = [text] if "Proc-Type" in text else [part for part in text.split(",") if part.strip()]
        if not parts:
            raise PrivateKeyError("no key in it")
        return tuple(dict.fromkeys(key for part in parts for key in parse_private_keys(part)))

    def encryption_secrets(self) -> tuple[bytes, ...]:
        """Return the configured encryption keys, 32 bytes each; none if they are to be derived.

        Raises:
            ValueError: one is not the base64 of 32 bytes.
        """
        if self.encryption_keys is None:
            return ()
        secrets = []
        for part in self.encryption_keys.get_secret_value().split(","):
            if not part.strip():
                continue
            try:
                secret = base64.b64decode(part.strip(), validate=True)
            except binascii.Error:
                secret = b""
            if len(secret) != _ENCRYPTION_KEY_BYTES:
                raise ValueError("each key is the base64 of 32 random bytes (openssl rand -base64 32)")
            secrets.append(secret)
        if not secrets:
            raise ValueError("no key in it")
        return tuple(secrets)

    def webhook_secrets(self) -> tuple[Secret, ...]:
        """Return the webhook secrets, the newest first."""
        if self.github_webhook_secret is None:
            return ()
        texts = self.github_webhook_secret.get_secret_value().split(",")
        return tuple(Secret(text.strip()) for text in texts if text.strip())

    def bootstrap_key(self) -> keys.PresentedKey | None:
        """Return what is needed to recognize ``BROKER_ADMIN_KEY``.

        Raises:
            BrokerError: it is malformed.
        """
        if self.admin_key is None:
            return None
        return keys.parse(self.admin_key.get_secret_value().strip())

    def tls_context(self) -> ssl.SSLContext | None:
        """Return a server's context with the certificate and key as they are in their files; reads them.

        Raises:
            OSError: they cannot be read, or do not belong together (``ssl.SSLError`` is one).
            ValueError: the key is encrypted.
        """
        if self.tls_cert_file is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.tls_cert_file, self.tls_key_file, password="")
        return context

    # -- what changes while the process runs -----------------------------------------------------

    def watched_files(self) -> tuple[Path, ...]:
        """Return the files that are read again when they change."""
        secret = [path for name in RELOADED_FIELDS for path in self._secret_files.get(name, ())]
        own = [path for path in (self.tls_cert_file, self.tls_key_file) if path is not None]
        return tuple(dict.fromkeys((*secret, *own)))

    def reread(self) -> "tuple[Settings, list[str]]":
        """Return these settings with what the files of secrets hold now, and a line for each problem.

        A secret whose files cannot be used keeps its value; the others are taken over all the same.
        """
        problems: list[str] = []
        latest = self
        for name in RELOADED_FIELDS:
            if name not in self._secret_files:
                continue
            text, wrong = _read_files(name, self._secret_files[name])
            if text is not None:
                tried = latest.model_copy(update={name: SecretStr(text)})
                wrong = _secret_problems(tried, name)
                latest = latest if wrong else tried
            problems += wrong
        return latest, problems


_WORKERS_METRICS: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Where ``prometheus_client`` looks, while it is imported, for the folder that worker processes share."""


def workers_metrics_folder() -> Path | None:
    """Return the folder that this process, a worker, shares its metrics in; None if it is no worker."""
    folder = os.environ.get(_WORKERS_METRICS)  # noqa: TID251 - this is the reader
    return Path(folder) if folder else None


def hand_to_workers(metrics_folder: Path) -> None:
    """Have the worker processes that are started from now on share their metrics in a folder."""
    os.environ[_WORKERS_METRICS] = str(metrics_folder)  # noqa: TID251 - there is no other way to tell them


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is a loopback address or ``localhost``."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _dotenv() -> dict[str, str | None]:
    """Return what ``.env`` sets.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        return dotenv_values(".env")
    except OSError as error:
        raise SettingsError([f".env cannot be read: {error.strerror}"]) from None
    except ValueError:
        raise SettingsError([".env cannot be read: it is no text in UTF-8"]) from None


def own_address() -> str:
    """Return the URL of the broker that listens on this machine with these settings; reads no secret."""
    environment = {**_dotenv(), **os.environ}  # noqa: TID251 - this is the reader
    fields = Settings.model_fields

    def value(name: str) -> str:
        given = (environment.get(f"{PREFIX}{name.upper()}") or "").strip()
        return given or str(fields[name].default or "")

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(value("host"), value("host"))  # noqa: S104 - not bound
    scheme = "https" if value("tls_cert_file") else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{value('port')}"


def unknown_variables() -> list[str]:
    """Return a line for each ``BROKER_*`` variable that means nothing, with what may have been meant."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    known |= {f"{PREFIX}{name.upper()}_FILE" for name in SECRET_FIELDS}
    known |= {"BROKER_API_URL", "BROKER_API_KEY", "BROKER_API_KEY_FILE", "BROKER_CA_FILE"}
    known |= {"BROKER_ALLOW_INSECURE"}
    lines = []
    for name in sorted({*os.environ, *_dotenv()}):  # noqa: TID251 - this is the reader
        if name.startswith(PREFIX) and name not in known:
            from difflib import get_close_matches  # noqa: PLC0415 - memory for what is seldom needed

            close = get_close_matches(name, known, n=1)
            lines.append(f"{name} is not a setting" + (f"; is {close[0]} meant?" if close else ""))
    return lines


def _lines(error: ValidationError) -> list[str]:
    """Return one line per problem, without the input."""
    lines = []
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        name = "_".join(str(part) for part in problem["loc"][:1]).upper()
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            lines.append(f"{PREFIX}{name} (or {PREFIX}{name}_FILE) is not set")
        else:
            lines.append(f"{PREFIX}{name}: {message}" if name else message)
    return lines


def load(**overrides: Any) -> Settings:  # noqa: ANN401 - values of any field, as a test or a flag gives them
    """Return the settings of this process, checked as far as that goes without a network.

    Raises:
        SettingsError: one line per problem.
    """
    environment = {**_dotenv(), **os.environ}  # noqa: TID251 - this is the reader
    files, problems = _named_files(environment)
    values: dict[str, str] = {}
    for name, paths in files.items():
        text, wrong = _read_files(name, paths)
        problems += wrong
        if text is not None:
            values[name] = text
    settings: Settings | None = None
    try:
        settings = Settings(**{**values, **overrides})
    except ValidationError as error:
        problems += _lines(error)
        given = {name for name in Settings.model_fields if environment.get(f"{PREFIX}{name.upper()}")}
        named = any("GITHUB_CLIENT_ID" in line for line in problems)
        if not named and not {"github_client_id", "github_app_id"} & {*given, *overrides}:
            # The check of the whole does not run while a part is wrong; nobody likes to be told in turns.
            problems.append(f"{PREFIX}GITHUB_CLIENT_ID (or {PREFIX}GITHUB_APP_ID) is not set")
    if settings is not None:
        settings._secret_files = files  # noqa: SLF001 - which files they came from is nobody else's business
        problems += _secrets_problems(settings)
    if problems or settings is None:
        raise SettingsError(_without_echo(problems))
    return settings


def load_place(github_url: str | None = None) -> GitHubPlace:
    """Return which GitHub is meant, also while there is no app yet.

    Args:
        github_url: instead of ``BROKER_GITHUB_URL``; the API's address then follows from it.

    Raises:
        SettingsError: one line per problem.
    """
    environment = {**_dotenv(), **os.environ}  # noqa: TID251 - this is the reader
    name = f"{PREFIX}PROXY_URL_FILE"
    files, problems = _named_files({name: environment.get(name)})
    values: dict[str, Any] = {} if github_url is None else {"github_url": github_url}
    for field, paths in files.items():
        values[field], wrong = _read_files(field, paths)
        problems += wrong
    try:
        place = GitHubPlace(**values)
    except ValidationError as error:
        raise SettingsError([*problems, *_lines(error)]) from None
    if place.github_ca_file is not None and not place.github_ca_file.is_file():
        problems.append(f"{PREFIX}GITHUB_CA_FILE: {place.github_ca_file} is not a file")
    if problems:
        raise SettingsError(problems)
    if github_url is not None or "github_api_url" not in place.model_fields_set:
        return place.model_copy(update={"github_api_url": pages.api(place.github_url)})
    return place


def _without_echo(problems: Sequence[str]) -> list[str]:
    """Drop "is not set" where the same variable's file could not be read."""
    files = {line.partition("_FILE:")[0] for line in problems if "_FILE:" in line}
    return [line for line in problems if not ("is not set" in line and line.partition(" ")[0] in files)]


def _secrets_problems(settings: Settings) -> list[str]:
    problems = [line for name in RELOADED_FIELDS for line in _secret_problems(settings, name)]
    try:
        settings.tls_context()
    except (OSError, ValueError):
        problems.append(TLS_PROBLEM)
    return problems


def _secret_problems(settings: Settings, name: str) -> list[str]:
    checks: dict[str, Callable[[], object]] = {
        "github_private_key": settings.private_keys,
        "encryption_keys": settings.encryption_secrets,
        "admin_key": settings.bootstrap_key,
        "github_webhook_secret": settings.webhook_secrets,
    }
    try:
        checks[name]()
    except (BrokerError, ValueError) as error:
        return [f"{PREFIX}{name.upper()}: {error}"]
    return []
