"""Build hook of the service: puts the client's wheel of the same version into ``broker/client_wheels/``.

Runs only when a distribution of the service is built. A clone builds the client from ``cli/`` when it is
asked for (`broker/client_wheels`), so an editable install gets no copy that could become stale.
"""

import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.builders.wheel import WheelBuilder


class ClientWheelHook(BuildHookInterface[Any]):
    """Builds ``cli/`` and has the wheel included beside those of earlier releases that lie there."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the client, unless this is an editable install.

        Raises:
            RuntimeError: a wheel of this very version lies in the folder for earlier releases: whoever
                put it there would have it given out instead of the client of this tree.
        """
        if version != "standard":
            return
        self._scratch = tempfile.TemporaryDirectory()
        (built,) = WheelBuilder(str(Path(self.root) / "cli")).build(
            directory=self._scratch.name, versions=["standard"]
        )
        inside = Path("broker", "client_wheels", Path(built).name)
        if (Path(self.root) / inside).exists():
            raise RuntimeError(f"{inside} is in the way: the build makes that wheel itself, from cli/")
        build_data["force_include"][built] = str(inside)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the copy that went into the distribution."""
        del build_data, artifact_path
        if version == "standard":
            self._scratch.cleanup()
