"""A folder of secrets as Kubernetes mounts it."""

import itertools
from pathlib import Path


class Mount:
    """A folder with secrets, replaced as Kubernetes does it: by swapping the link ``..data``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._versions = itertools.count()

    def put(self, **files: str) -> None:
        version = self.folder / f"..{next(self._versions)}"
        version.mkdir()
        for name, text in files.items():
            (version / name).write_text(text)
            link = self.folder / name
            if not link.is_symlink():
                link.symlink_to(Path("..data") / name)
        fresh = self.folder / "..data_tmp"
        fresh.symlink_to(version.name)
        fresh.rename(self.folder / "..data")
