"""The broker and the process under test, for each test anew."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cli_stage import KEY, FakeBroker, Here, Run

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    fake = FakeBroker()
    yield fake
    fake.close()


@pytest.fixture(scope="session")
def command() -> str:
    return str(Path(sysconfig.get_path("scripts")) / "broker-cli")


@pytest.fixture(scope="session")
def bytecode(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("bytecode"))


@pytest.fixture
def run(command: str, bytecode: str, tmp_path: Path, broker: FakeBroker) -> Run:
    return Run(command, bytecode, tmp_path, broker.url)


@pytest.fixture
def here(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Here:
    """The client in this process, with the environment of `run`."""
    for name in list(os.environ):
        if name.startswith(("BROKER_", "XDG_", "GIT_", "_BROKER")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("BROKER_API_URL", broker.url)
    monkeypatch.setenv("BROKER_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    return Here(monkeypatch, capfd, tmp_path)
