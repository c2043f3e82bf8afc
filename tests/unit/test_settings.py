"""Settings: each row of the contract's table, and not one secret in what is said about a wrong one."""

import base64
import os
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from harness import SCRIPTS, World, clean_environment
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from broker import settings as broker_settings
from broker.access.keys import generate
from broker.build import build
from broker.errors import SettingsError
from broker.settings import Settings, load, unknown_variables

RSA = rsa.generate_private_key(65537, 2048)
PKCS1 = RSA.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
PKCS8 = RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
OTHER = (
    rsa.generate_private_key(65537, 2048)
    .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    .decode()
)
SMALL = (
    rsa.generate_private_key(65537, 1024)  # noqa: S505 - is to be refused
    .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    .decode()
)
EC = (
    ec.generate_private_key(ec.SECP256R1())
    .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    .decode()
)
ENCRYPTED = RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")).decode()
KEK = base64.b64encode(bytes(range(32))).decode()
ADMIN = generate()[0].reveal()


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Begin with the least that is needed, in an empty folder."""
    for name in list(os.environ):
        if name.startswith("BROKER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BROKER_GITHUB_CLIENT_ID", "Iv23liAAAA")
    monkeypatch.setenv("BROKER_GITHUB_PRIVATE_KEY", PKCS1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(**environment: str | None) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            if value is None:
                patch.delenv(name)
            else:
                patch.setenv(name, value)
        with pytest.raises(SettingsError) as caught:
            build(load())
    for line in caught.value.problems:
        assert "\n" not in line
    return caught.value.problems


def with_env(**environment: str) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return load()


def test_the_defaults_are_the_contracts() -> None:
    found = load()
    expected: dict[str, Any] = {
        "github_api_url": "https://api.github.com",
        "github_url": "https://github.com",
        "encryption_keys": None,
        "admin_key": None,
        "trusted_proxies": (),
        "allowed_owners": (),
        "mint_budget": 120,
        "audit_max_events": 1_000_000,
        "audit_retention": 90 * 86400,
        "accept_implicit_permissions": (),
        "request_timeout": 25,
        "host": "127.0.0.1",
        "port": 8080,
        "workers": 1,
        "token_min_ttl": 300,
        "token_refresh_ahead": 900,
        "installation_ttl": 600,
        "failure_cooldown": 10,
        "probe_new_tokens": "off",
        "log_format": None,
        "log_level": "info",
    }
    assert {name: getattr(found, name) for name in expected} == expected
    assert found.store_url.get_secret_value() == "sqlite:///broker.db"
    assert found.issuer == "Iv23liAAAA"
    assert found.github_host == "github.com"


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        (
            "GITHUB_API_URL",
            "https://ghe.example.com/api/v3/",
            "github_api_url",
            "https://ghe.example.com/api/v3",
        ),
        ("GITHUB_URL", "https://GHE.example.com", "github_host", "ghe.example.com"),
        ("GITHUB_URL", "http://127.0.0.1:8081", "github_host", "127.0.0.1:8081"),
        ("TRUSTED_PROXIES", "10.0.0.0/8, ::1/128", "trusted_proxies", ("10.0.0.0/8", "::1/128")),
        ("ALLOWED_OWNERS", "Acme, other", "allowed_owners", ("acme", "other")),
        ("MINT_BUDGET", "7", "mint_budget", 7),
        ("AUDIT_RETENTION", "30d", "audit_retention", 30 * 86400),
        ("AUDIT_MAX_EVENTS", "5000", "audit_max_events", 5000),
        ("ACCEPT_IMPLICIT_PERMISSIONS", "a,b", "accept_implicit_permissions", ("a", "b")),
        ("REQUEST_TIMEOUT", "10", "request_timeout", 10),
        ("HOST", "0.0.0.0", "host", "0.0.0.0"),  # noqa: S104
        ("PORT", "9000", "port", 9000),
        ("WORKERS", "4", "workers", 4),
        ("TOKEN_MIN_TTL", "5m", "token_min_ttl", 300),
        ("TOKEN_REFRESH_AHEAD", "30m", "token_refresh_ahead", 1800),
        ("INSTALLATION_TTL", "60", "installation_ttl", 60),
        ("FAILURE_COOLDOWN", "0.5s", "failure_cooldown", 0.5),
        ("PROBE_NEW_TOKENS", "git", "probe_new_tokens", "git"),
        ("LOG_FORMAT", "json", "log_format", "json"),
        ("LOG_LEVEL", "debug", "log_level", "debug"),
        ("PORT", "", "port", 8080),
    ],
)
def test_values(name: str, text: str, field: str, value: object) -> None:
    assert getattr(with_env(**{f"BROKER_{name}": text}), field) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("GITHUB_CLIENT_ID", "two words"),
        ("GITHUB_CLIENT_ID", "x" * 101),
        ("GITHUB_API_URL", "api.github.com"),
        ("GITHUB_API_URL", "http://api.github.com"),
        ("GITHUB_API_URL", "https://user:hunter2@api.github.com"),
        ("GITHUB_API_URL", "https://[x"),
        ("GITHUB_API_URL", "https://api.github.com:port"),
        ("GITHUB_API_URL", "https://api.github.com:99999"),
        ("GITHUB_API_URL", "https://api.github.com?x=1"),
        ("GITHUB_URL", "ftp://github.com"),
        ("GITHUB_URL", "https://"),
        ("GITHUB_CA_FILE", "/nowhere/ca.pem"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("TRUSTED_PROXIES", "proxy.example.com"),
        ("ALLOWED_OWNERS", "acme/*"),
        ("MINT_BUDGET", "0"),
        ("MINT_BUDGET", "many"),
        ("AUDIT_RETENTION", "90 days"),
        ("AUDIT_RETENTION", "-1"),
        ("AUDIT_RETENTION", "9" * 400),
        ("AUDIT_MAX_EVENTS", "1"),
        ("REQUEST_TIMEOUT", "0"),
        ("REQUEST_TIMEOUT", "nan"),
        ("REQUEST_TIMEOUT", "inf"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("WORKERS", "0"),
        ("TOKEN_MIN_TTL", "3001"),
        ("TOKEN_MIN_TTL", "901"),
        ("TOKEN_REFRESH_AHEAD", "1h"),
        ("INSTALLATION_TTL", "0"),
        ("FAILURE_COOLDOWN", "0"),
        ("PROBE_NEW_TOKENS", "yes"),
        ("LOG_FORMAT", "xml"),
        ("LOG_LEVEL", "loud"),
        ("STORE_URL", "postgres://user:hunter2@db/x"),
        ("STORE_URL", "sqlite:relative.db"),
        ("STORE_URL", "sqlite://"),
        ("STORE_URL", "sqlite://[hunter2"),
        ("STORE_URL", "redis://:hunter2@[x"),
        ("STORE_URL", "redis://:hunter2@localhost:port"),
        ("STORE_URL", "redis://:hunter2@localhost/0?nonsense=1"),
        ("STORE_URL", "redisx://:hunter2@localhost"),
        ("PROXY_URL", "hunter2"),
        ("PROXY_URL", "https://user:hunter2@[x"),
        ("PROXY_URL", "gopher://user:hunter2@proxy"),
        ("ENCRYPTION_KEYS", "hunter2"),
        ("ENCRYPTION_KEYS", base64.b64encode(b"hunter2" * 4).decode()),
        ("ENCRYPTION_KEYS", f"{KEK},hunter2"),
        ("ENCRYPTION_KEYS", ","),
        ("ADMIN_KEY", "hunter2"),
        pytest.param("ADMIN_KEY", ADMIN[:-1] + ("0" if ADMIN[-1] != "0" else "1"), id="a mistyped key"),
        ("GITHUB_PRIVATE_KEY", "hunter2"),
        ("GITHUB_PRIVATE_KEY", ","),
        ("GITHUB_PRIVATE_KEY", PKCS1[:200]),
        ("GITHUB_PRIVATE_KEY", EC),
        ("GITHUB_PRIVATE_KEY", SMALL),
        ("GITHUB_PRIVATE_KEY", ENCRYPTED),
        ("GITHUB_PRIVATE_KEY_FILE", "/nowhere/key.pem"),
        ("TLS_CERT_FILE", "/etc/hostname"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_that_names_its_variable(name: str, text: str) -> None:
    variable = f"BROKER_{name}"
    more = {"BROKER_GITHUB_PRIVATE_KEY": None} if name.endswith("PRIVATE_KEY_FILE") else {}
    lines = problems(**{variable: text}, **more)
    assert len(lines) == 1, lines
    assert variable in lines[0]
    assert "hunter2" not in lines[0]
    assert text[40:80] not in lines[0] or not text[40:80]


def test_what_is_missing_is_named() -> None:
    assert problems(BROKER_GITHUB_PRIVATE_KEY=None) == [
        "BROKER_GITHUB_PRIVATE_KEY (or BROKER_GITHUB_PRIVATE_KEY_FILE) is not set"
    ]
    (line,) = problems(BROKER_GITHUB_CLIENT_ID=None)
    assert "BROKER_GITHUB_CLIENT_ID" in line
    assert "BROKER_GITHUB_APP_ID" in line
    (line,) = problems(BROKER_GITHUB_APP_ID="1")
    assert "exactly one" in line
    (line,) = problems(BROKER_GITHUB_CLIENT_ID=None, BROKER_GITHUB_APP_ID="Iv23li")
    assert line.startswith("BROKER_GITHUB_APP_ID: ")


def test_all_that_is_missing_is_told_at_once() -> None:
    lines = problems(BROKER_GITHUB_PRIVATE_KEY=None, BROKER_GITHUB_CLIENT_ID=None)
    assert [line.split()[0] for line in lines] == ["BROKER_GITHUB_PRIVATE_KEY", "BROKER_GITHUB_CLIENT_ID"]


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "x.pem"
    file.write_text("no certificate")
    (line,) = problems(BROKER_TLS_CERT_FILE=str(file), BROKER_TLS_KEY_FILE=str(file))
    assert line.startswith("BROKER_TLS_CERT_FILE, BROKER_TLS_KEY_FILE: ")


def test_several_problems_are_several_lines() -> None:
    lines = problems(BROKER_PORT="x", BROKER_WORKERS="0", BROKER_LOG_LEVEL="loud")
    assert {line.partition(":")[0] for line in lines} == {
        "BROKER_PORT", "BROKER_WORKERS", "BROKER_LOG_LEVEL",
    }  # fmt: skip


SECRET_FIELDS = ["GITHUB_PRIVATE_KEY", "ENCRYPTION_KEYS", "ADMIN_KEY", "STORE_URL", "PROXY_URL"]
CORES = st.text("abcdefXYZ0189+/=-_:@[]?#%,.{}$' \"\\", min_size=12, max_size=60).filter(
    lambda text: len(text.strip()) >= 12
)


@pytest.mark.parametrize("name", SECRET_FIELDS)
@hypothesis_settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    core=CORES, before=st.sampled_from(["", "redis://:", "sqlite:///", "https://u:", "-----BEGIN ", "ghbk_"])
)
@example(core="https://u:hunter2hunter2@exa\u2100mple.com", before="")
def test_no_secret_is_ever_said(name: str, core: str, before: str) -> None:
    text = before + core
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(f"BROKER_{name}", text)
        try:
            build(load())
        except SettingsError as error:
            said = "\n".join([*error.problems, str(error), repr(error)])
            cause: BaseException | None = error
            assert core.strip() not in said
            while cause is not None:  # nor in what a traceback would show
                assert core.strip() not in repr(cause)
                cause = cause.__cause__


def test_settings_hide_their_secrets() -> None:
    shown = repr(
        with_env(
            BROKER_ENCRYPTION_KEYS=KEK,
            BROKER_ADMIN_KEY=ADMIN,
            BROKER_STORE_URL="redis://:hunter2@h",
            BROKER_PROXY_URL="http://u:hunter2@p",
            BROKER_GITHUB_WEBHOOK_SECRET="hunter2",
        )
    )
    for secret in ("hunter2", KEK, ADMIN, PKCS1.splitlines()[3]):
        assert secret not in shown


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (PKCS1, 1),
        (PKCS8, 1),
        (PKCS1.replace("\n", "\\n"), 1),
        (PKCS1.replace("\n", "\r\n"), 1),
        (f'"{PKCS1}"', 1),
        (base64.b64encode(PKCS1.encode()).decode(), 1),
        (base64.encodebytes(PKCS8.encode()).decode(), 1),
        (f"{PKCS1},{OTHER}", 2),
        (PKCS1 + OTHER, 2),
        (f"{base64.b64encode(PKCS1.encode()).decode()}, {base64.b64encode(OTHER.encode()).decode()}", 2),
        (f"{PKCS1},{base64.b64encode(OTHER.encode()).decode()}", 2),
        (f"{base64.b64encode(OTHER.encode()).decode()},{PKCS1}", 2),
    ],
)  # fmt: skip
def test_private_keys_in_every_form(bare: Path, form: str, expected: int) -> None:
    direct = with_env(BROKER_GITHUB_PRIVATE_KEY=form).private_keys()
    assert len(direct) == expected
    (bare / "key").write_text(form)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("BROKER_GITHUB_PRIVATE_KEY")
        patch.setenv("BROKER_GITHUB_PRIVATE_KEY_FILE", "key")
        assert load().private_keys() == direct


def test_several_key_files(bare: Path) -> None:
    (bare / "old.pem").write_text(PKCS1)
    (bare / "new.pem").write_text(base64.b64encode(OTHER.encode()).decode())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("BROKER_GITHUB_PRIVATE_KEY")
        patch.setenv("BROKER_GITHUB_PRIVATE_KEY_FILE", "new.pem, old.pem")
        found = load().private_keys()
    assert [key.rsa.private_numbers() for key in found][1] == RSA.private_numbers()
    assert len(found) == 2


FILES = {
    "ENCRYPTION_KEYS": KEK,
    "ADMIN_KEY": ADMIN,
    "STORE_URL": "redis://:hunter2@localhost",
    "PROXY_URL": "http://u:hunter2@proxy:3128",
    "GITHUB_WEBHOOK_SECRET": "hunter2hunter2",
}


@pytest.mark.parametrize("name", FILES)
def test_secrets_from_files(bare: Path, name: str) -> None:
    (bare / "secret").write_text(FILES[name] + "\n")
    found = with_env(**{f"BROKER_{name}_FILE": str(bare / "secret")})
    assert getattr(found, name.lower()).get_secret_value() == FILES[name]
    (line,) = problems(**{f"BROKER_{name}_FILE": "secret", f"BROKER_{name}": FILES[name]})
    assert f"BROKER_{name}_FILE" in line
    assert "not both" in line
    (line,) = problems(**{f"BROKER_{name}_FILE": "missing"})
    assert line.startswith(f"BROKER_{name}_FILE: missing cannot be read")
    (bare / "binary").write_bytes(b"\xff\xfe hunter2")
    (line,) = problems(**{f"BROKER_{name}_FILE": "binary"})
    assert "hunter2" not in line
    (bare / "folder").mkdir()
    assert len(problems(**{f"BROKER_{name}_FILE": "folder"})) == 1
    (bare / "large").write_text("x" * 300_000)
    assert len(problems(**{f"BROKER_{name}_FILE": "large"})) == 1
    (bare / "empty").write_text("\n")
    (line,) = problems(**{f"BROKER_{name}_FILE": "empty"})
    assert f"BROKER_{name}" in line


def test_dotenv_is_read_and_the_environment_wins(bare: Path) -> None:
    (bare / "cid").write_text(ADMIN)
    (bare / ".env").write_text("BROKER_PORT=7000\nBROKER_WORKERS=3\nBROKER_ADMIN_KEY_FILE=cid\nOTHER=1\n")
    found = with_env(BROKER_WORKERS="2")
    assert (found.port, found.workers) == (7000, 2)
    assert found.bootstrap_key() is not None


def test_a_dotenv_that_is_no_text_is_a_problem_not_a_crash(bare: Path) -> None:
    (bare / ".env").write_bytes(b"BROKER_PORT=7000\n\xff\xfe\x00")
    (line,) = problems()
    assert ".env" in line


def test_encryption_keys_and_webhook_secrets_may_be_several() -> None:
    other = base64.b64encode(bytes(32)).decode()
    found = with_env(BROKER_ENCRYPTION_KEYS=f"{KEK}, {other}", BROKER_GITHUB_WEBHOOK_SECRET="new, old")
    assert found.encryption_secrets() == (bytes(range(32)), bytes(32))
    assert [secret.reveal() for secret in found.webhook_secrets()] == ["new", "old"]


def test_variables_that_mean_nothing_are_pointed_out(monkeypatch: pytest.MonkeyPatch, bare: Path) -> None:
    monkeypatch.setenv("BROKER_MINT_BUDGTE", "5")
    monkeypatch.setenv("BROKER_API_URL", "https://x")  # the client's
    (line,) = unknown_variables()
    assert "BROKER_MINT_BUDGTE" in line
    assert "BROKER_MINT_BUDGET" in line
    (bare / ".env").write_text("BROKER_STOER_URL=x\n")
    assert any("BROKER_STOER_URL" in line for line in unknown_variables())


def test_only_settings_reads_the_environment() -> None:
    folder = Path(broker_settings.__file__).parent
    for path in folder.rglob("*.py"):
        if path.name != "settings.py" and "sandbox" not in path.parts and "demo" not in path.name:
            assert not re.search(r"os\.environ|getenv", path.read_text()), path


def test_serve_with_wrong_settings_ends_with_2(world: World) -> None:
    """Exit status 2, one line per problem on stderr, no traceback, no secret, nothing on stdout."""
    done = world.command(
        "serve",
        BROKER_PORT="x",
        BROKER_ADMIN_KEY="hunter2",
        BROKER_ENCRYPTION_KEYS="hunter2",
    )
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 1  # the shape first: values that rest on it are looked at when that is right
    assert "BROKER_PORT" in lines[0]
    done = world.command("serve", BROKER_ADMIN_KEY="hunter2", BROKER_ENCRYPTION_KEYS="hunter2")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 2
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr
    done = world.command("serve", BROKER_STORE_URL="redis://:hunter2@[x")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr


def test_without_anything_the_command_says_what_is_needed(tmp_path: Path) -> None:
    import subprocess  # noqa: PLC0415

    done = subprocess.run(
        [str(SCRIPTS / "broker"), "serve"],
        env=clean_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert "BROKER_GITHUB_PRIVATE_KEY" in done.stderr
    assert "Traceback" not in done.stderr
