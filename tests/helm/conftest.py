"""The helm binary, once a run."""

import shutil
from pathlib import Path

import pytest
from chart_stage import Helm, unpacked


@pytest.fixture(scope="session")
def helm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    binary = shutil.which("helm")
    if binary is None:
        binary = str(unpacked(Path(request.config.cache.mkdir("helm"))))
    return Helm(binary, tmp_path_factory.mktemp("helm-home"))
