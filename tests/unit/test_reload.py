"""Files of secrets that change while the process runs: swapped, half-written, gone, wrong."""

import asyncio
import base64
import logging
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from mount import Mount
from servers import certificate

from broker import settings as broker_settings
from broker.access.keys import generate
from broker.errors import StoreUnavailableError
from broker.reload import SecretWatch
from broker.settings import Settings


def pem() -> str:
    return (
        rsa.generate_private_key(65537, 2048)
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        .decode()
    )


OLD, NEW = pem(), pem()


@dataclass
class Stage:
    """Mounted secrets, as Kubernetes lays them out, and a watch on them."""

    folder: Path
    watch: SecretWatch = field(init=False)
    taken: list[Settings] = field(default_factory=list)
    contexts: list[ssl.SSLContext] = field(default_factory=list)
    trouble: Exception | None = None
    mount: Mount = field(init=False)

    def __post_init__(self) -> None:
        self.mount = Mount(self.folder)

    async def _use(self, settings: Settings) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.taken.append(settings)

    def begin(self) -> None:
        self.watch = SecretWatch(
            broker_settings.load(), use=self._use, use_tls=self.contexts.append, poll_s=0.01
        )


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    for name in list(os.environ):
        if name.startswith("BROKER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    found = Stage(tmp_path)
    found.mount.put(
        key=OLD, hook="one", admin=generate()[0].reveal(), kek=base64.b64encode(bytes(32)).decode()
    )
    monkeypatch.setenv("BROKER_GITHUB_CLIENT_ID", "Iv23liAAAA")
    monkeypatch.setenv("BROKER_GITHUB_PRIVATE_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("BROKER_GITHUB_WEBHOOK_SECRET_FILE", str(tmp_path / "hook"))
    monkeypatch.setenv("BROKER_ADMIN_KEY_FILE", str(tmp_path / "admin"))
    monkeypatch.setenv("BROKER_ENCRYPTION_KEYS_FILE", str(tmp_path / "kek"))
    found.begin()
    return found


async def test_a_swapped_mount_is_taken_over_whole(stage: Stage) -> None:
    await stage.watch.look()
    assert stage.taken == []
    admin, kek = generate()[0].reveal(), base64.b64encode(bytes(range(32))).decode()
    stage.mount.put(key=f"{NEW}\n{OLD}", hook="two,one", admin=admin, kek=kek)
    await stage.watch.look()
    (taken,) = stage.taken
    assert len(taken.private_keys()) == 2
    assert [one.reveal() for one in taken.webhook_secrets()] == ["two", "one"]
    assert taken.encryption_secrets() == (bytes(range(32)),)
    assert taken.admin_key is not None
    assert taken.admin_key.get_secret_value() == admin
    await stage.watch.look()
    assert len(stage.taken) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text(NEW[: len(NEW) // 2]),
        lambda path: path.write_text(""),
        lambda path: path.write_text("no key at all"),
        lambda path: path.write_bytes(os.urandom(3000)),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["half", "empty", "nonsense", "binary", "gone", "folder"],
)
async def test_what_cannot_be_used_changes_nothing_and_is_told_once(
    stage: Stage, spoil: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    """Another secret that changed at the same time is taken over all the same."""
    await stage.watch.look()
    spoil((stage.folder / "..data" / "key").resolve())
    (stage.folder / "..data" / "hook").write_text("two")
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            await stage.watch.look()
    (taken,) = stage.taken
    assert taken.github_private_key.get_secret_value().strip() == OLD.strip()
    assert [one.reveal() for one in taken.webhook_secrets()] == ["two"]
    (line,) = [one.getMessage() for one in caplog.records if one.name == "broker.reload"]
    assert "BROKER_GITHUB_PRIVATE_KEY" in line
    assert not any(part in caplog.text for part in (NEW.splitlines()[3], OLD.splitlines()[3], "two"))
    key = stage.folder / "..data" / "key"
    if key.is_dir():
        key.rmdir()
    key.write_text(NEW)
    await stage.watch.look()
    assert stage.taken[-1].github_private_key.get_secret_value().strip() == NEW.strip()


async def test_a_change_between_the_start_and_the_first_look_is_noticed(stage: Stage) -> None:
    stage.mount.put(
        key=NEW,
        hook="one",
        admin=(stage.folder / "admin").read_text(),
        kek=(stage.folder / "kek").read_text(),
    )
    await stage.watch.look()
    (taken,) = stage.taken
    assert taken.github_private_key.get_secret_value().strip() == NEW.strip()


async def test_a_store_that_is_away_is_asked_again(stage: Stage) -> None:
    """Without its wrap of the new key the store could not be opened once the old key is gone."""
    await stage.watch.look()
    stage.trouble = StoreUnavailableError("away")
    (stage.folder / "..data" / "key").write_text(NEW)
    await stage.watch.look()
    assert stage.taken == []
    stage.trouble = None
    await stage.watch.look()
    assert len(stage.taken) == 1


async def test_a_file_that_is_still_being_written_is_waited_for(stage: Stage) -> None:
    await stage.watch.look()
    path = (stage.folder / "..data" / "key").resolve()

    async def write_slowly() -> None:
        with path.open("w") as file:
            for line in NEW.splitlines(keepends=True):
                file.write(line)
                file.flush()
                await asyncio.sleep(0.02)

    writing = asyncio.create_task(write_slowly())
    await asyncio.sleep(0.05)
    await stage.watch.look()
    await writing
    await stage.watch.look()
    assert [one.github_private_key.get_secret_value().strip() for one in stage.taken] == [NEW.strip()]


async def test_a_certificate_is_taken_over_only_with_its_key(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = stage.folder / "first", stage.folder / "second"
    for folder in (first, second):
        folder.mkdir()
    cert, key = certificate(first)
    monkeypatch.setenv("BROKER_TLS_CERT_FILE", str(cert))
    monkeypatch.setenv("BROKER_TLS_KEY_FILE", str(key))
    stage.begin()
    await stage.watch.look()
    had = len(stage.contexts)
    new_cert, new_key = certificate(second)
    cert.write_bytes(new_cert.read_bytes())
    await stage.watch.look()
    assert len(stage.contexts) == had
    assert caplog.text.count("no PEM certificate and the key that belongs to it") == 1
    key.write_bytes(new_key.read_bytes())
    await stage.watch.look()
    assert len(stage.contexts) == had + 1


async def test_what_is_in_the_environment_is_not_watched(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GITHUB_PRIVATE_KEY", "GITHUB_WEBHOOK_SECRET", "ADMIN_KEY", "ENCRYPTION_KEYS"):
        monkeypatch.delenv(f"BROKER_{name}_FILE")
    monkeypatch.setenv("BROKER_GITHUB_PRIVATE_KEY", OLD)
    stage.begin()
    await asyncio.wait_for(stage.watch.run(), 5)
