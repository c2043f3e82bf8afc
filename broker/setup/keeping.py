"""What setup leaves behind: files of mode 0600 in a folder of their own; touches the disk."""

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from broker.errors import SetupError
from broker.github import pages
from broker.model import NewApp
from broker.settings import GitHubPlace

_ENV: Final = (".env", "app.pem", "webhook-secret", ".gitignore")
_KUBERNETES: Final = ("secret.yaml", "values.yaml", ".gitignore")
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
CARRIED: Final = "setup.html"
"""The page that ``--manual`` has carried to a browser; deleted in the end."""


class Keeping:
    """A folder that a new app's secrets go into.

    Args:
        folder: made, for its owner alone, if it is not there.
        place: which GitHub.
        kubernetes_secret: name of a Secret to write manifests of, instead of what ``broker`` reads.
        force: write over what is there.
        manual: a page lies there for a while, too.
    """

    def __init__(
        self,
        folder: Path,
        place: GitHubPlace,
        *,
        kubernetes_secret: str | None,
        force: bool,
        manual: bool = False,
    ) -> None:
        self.folder = folder
        self.kubernetes_secret = kubernetes_secret
        self._place = place
        self._force = force
        self._manual = manual

    def prepare(self) -> None:
        """Find out now, and not when the secrets are there, whether they can be written.

        Raises:
            SetupError: they cannot, would write over something, or others could change them.
        """
        names = _ENV if self.kubernetes_secret is None else _KUBERNETES
        if self._manual:
            names = (*names, CARRIED)
        taken = [name for name in names if os.path.lexists(self.folder / name) and name != ".gitignore"]
        if taken and not self._force:
            raise SetupError(
                f"{', '.join(str(self.folder / name) for name in taken)}: there already. "
                "Choose another --output, or --force to write over it"
            )
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.folder.stat()
            if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE:
                # Whoever can write to it could put a key of their own in the place of the app's.
                raise SetupError(
                    f"{self.folder} belongs to another user, or others may write to it. Choose another "
                    "--output, or take it over (chown, chmod go-w)"
                )
            probe = self.folder / f".setup-{secrets.token_hex(8)}"
            _write(probe, "", force=False)
            probe.unlink()
        except OSError as error:
            raise SetupError(f"{self.folder} cannot be written to: {error.strerror}") from None

    def carry(self, text: str) -> Path:
        """Write the page that is carried to a browser; return where it is.

        Raises:
            SetupError: it could not be written.
        """
        path = self.folder / CARRIED
        try:
            _write(path, text, force=self._force)
        except OSError as error:
            raise SetupError(f"{path} could not be written: {error.strerror}") from None
        return path

    def keep(self, new: NewApp) -> list[Path]:
        """Write it all, the private key first; return the files.

        Raises:
            SetupError: a file could not be written.
        """
        written = []
        for name, text in self._texts(new).items():
            path = self.folder / name
            if name == ".gitignore" and path.exists():
                continue
            try:
                _write(path, text, force=self._force)
            except OSError as error:
                raise SetupError(
                    f"{path} could not be written: {error.strerror}. The app is there, but GitHub does "
                    "not show its secrets again: make a new private key on the app's page"
                ) from None
            written.append(path)
        return written

    def _texts(self, new: NewApp) -> Mapping[str, str]:
        if self.kubernetes_secret is not None:
            return _kubernetes(new, self._place, self.kubernetes_secret)
        texts = {"app.pem": f"{new.private_key.reveal().strip()}\n"}
        lines = [f"# GitHub App {new.app.slug} of {new.app.owner}. Paths are from this folder on."]
        lines += [f"BROKER_{name.upper()}={value}" for name, value in issuer(new, self._place).items()]
        lines.append("BROKER_GITHUB_PRIVATE_KEY_FILE=app.pem")
        if new.webhook_secret is not None:
            texts["webhook-secret"] = f"{new.webhook_secret.reveal()}\n"
            lines.append("BROKER_GITHUB_WEBHOOK_SECRET_FILE=webhook-secret")
        lines.append("BROKER_STORE_URL=sqlite:///broker.db")
        if self._place.github_url != pages.GITHUB:
            lines.append(f"BROKER_GITHUB_URL={self._place.github_url}")
            lines.append(f"BROKER_GITHUB_API_URL={self._place.github_api_url}")
        if self._place.github_ca_file is not None:
            lines.append(f"BROKER_GITHUB_CA_FILE={self._place.github_ca_file.absolute()}")
        # So that nobody commits a key by mistake, wherever the folder was made.
        return {**texts, ".env": "\n".join([*lines, ""]), ".gitignore": "*\n"}


def issuer(new: NewApp, place: GitHubPlace) -> dict[str, str]:
    """Return the setting that names the app.

    GitHub recommends the client id; Enterprise Server documents it only from 3.14 on, the app id always.
    """
    if new.client_id and not pages.on_premises(place.github_url):
        return {"github_client_id": new.client_id}
    return {"github_app_id": str(new.app.id)}


def _kubernetes(new: NewApp, place: GitHubPlace, name: str) -> Mapping[str, str]:
    """Return a Secret with the keys that the chart's ``existingSecret`` values expect, and the values.

    JSON texts are YAML too, and quote everything.
    """
    held = {"private-key.pem": f"{new.private_key.reveal().strip()}\n"}
    if new.webhook_secret is not None:
        held["webhook-secret"] = new.webhook_secret.reveal()
    secret = ["apiVersion: v1", "kind: Secret", "type: Opaque", "metadata:", f"  name: {json.dumps(name)}"]
    secret += ["stringData:", *(f"  {key}: {json.dumps(value)}" for key, value in held.items()), ""]
    named = issuer(new, place)
    values = ["github:"]
    if "github_client_id" in named:
        values.append(f"  clientId: {json.dumps(named['github_client_id'])}")
    else:
        values.append(f"  appId: {json.dumps(named['github_app_id'])}")
    values += ["  privateKey:", f"    existingSecret: {json.dumps(name)}"]
    if new.webhook_secret is not None:
        values += ["  webhookSecret:", f"    existingSecret: {json.dumps(name)}"]
    if place.github_url != pages.GITHUB:
        values += [f"  url: {json.dumps(place.github_url)}", f"  apiUrl: {json.dumps(place.github_api_url)}"]
    return {"secret.yaml": "\n".join(secret), "values.yaml": "\n".join([*values, ""]), ".gitignore": "*\n"}


def _write(path: Path, text: str, *, force: bool) -> None:
    """Write a whole file of mode 0600, or none; what is there is only replaced by ``force``."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(beside, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if force:
            beside.replace(path)
        else:
            path.hardlink_to(beside)  # refuses what is there, also a link to elsewhere
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
