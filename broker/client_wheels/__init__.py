"""The client's wheels that this service gives out; reads files.

An installed service has them beside this file: its build puts the client of its own version there
(`hatch_build.py` at the top of the tree), together with those of earlier releases that lay there. In a
clone the client is built from ``cli/`` as it is at that moment, so nobody is given a stale one.
"""

import email.parser
import hashlib
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.errors import ClientWheelsError

FOLDER: Final = Path(__file__).parent
CLONE: Final = FOLDER.parents[1] / "cli"
_NAMES: Final = "broker_cli-*-py3-none-any.whl"


@dataclass(frozen=True, slots=True)
class ClientWheel:
    """A wheel of ``broker-cli``.

    Attributes:
        filename: as PyPA's binary distribution format has it.
        metadata: the bytes of its ``METADATA``, for installers that want to resolve before they download.
        sha256: of ``content``, hex.
        metadata_sha256: of ``metadata``, hex.
    """

    filename: str
    version: str
    requires_python: str
    content: bytes
    metadata: bytes
    sha256: str
    metadata_sha256: str


def load(folder: Path = FOLDER, clone: Path = CLONE) -> Sequence[ClientWheel]:
    """Return the wheels to give out; blocks for the fraction of a second that building one takes.

    Args:
        folder: where built wheels lie.
        clone: the client's project; is only there where this module runs from a clone.

    Raises:
        ClientWheelsError: there is none, or one cannot be read.
    """
    try:
        found = {wheel.filename: wheel for wheel in map(_read, sorted(folder.glob(_NAMES)))}
        if (clone / "pyproject.toml").is_file():
            own = _built(clone)
            found[own.filename] = own
    except (ImportError, OSError, StopIteration, zipfile.BadZipFile, KeyError) as error:
        raise ClientWheelsError(f"a client's wheel cannot be made or read: {error!r}") from error
    if not found:
        raise ClientWheelsError(f"no {_NAMES} in {folder}")
    return tuple(found.values())


def _read(path: Path) -> ClientWheel:
    with zipfile.ZipFile(path) as archive:
        name = next(one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        metadata = archive.read(name)
    about = email.parser.BytesHeaderParser().parsebytes(metadata)
    content = path.read_bytes()
    return ClientWheel(
        filename=path.name,
        version=about["Version"],
        requires_python=about["Requires-Python"],
        content=content,
        metadata=metadata,
        sha256=hashlib.sha256(content).hexdigest(),
        metadata_sha256=hashlib.sha256(metadata).hexdigest(),
    )


def _built(project: Path) -> ClientWheel:
    """Build the client with its own build backend: byte for byte what ``uv build`` makes of it."""
    from hatchling.builders.wheel import WheelBuilder  # noqa: PLC0415 - a clone's dev group alone has it

    with tempfile.TemporaryDirectory() as scratch:
        (path,) = WheelBuilder(str(project)).build(directory=scratch, versions=["standard"])
        return _read(Path(path))
