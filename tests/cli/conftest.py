"""The broker and the process under test, for each test anew."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cli_stage import FakeBroker, Run

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
