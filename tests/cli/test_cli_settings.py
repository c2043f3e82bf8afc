"""Flags before environment before profile; what is refused before anything is sent."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from cli_stage import KEY, TOKEN

if TYPE_CHECKING:
    from pathlib import Path

    from cli_stage import FakeBroker, Run

ARGUMENTS = ("github", "token", "a/b")


@pytest.fixture
def profile(run: Run, broker: FakeBroker) -> Path:
    path = run.home / ".config" / "broker-cli" / "profile.json"
    path.parent.mkdir(parents=True)
    write(path, {"version": 1, "api_url": broker.url, "api_key": KEY, "later": True})
    return path


def write(path: Path, document: Any) -> None:
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    path.chmod(0o600)


@pytest.mark.parametrize(
    "key",
    [
        "x",
        KEY[:-1],
        KEY + "0",
        KEY + "\n",
        " " + KEY,
        KEY[:-1] + ("0" if KEY[-1] != "0" else "1"),
        KEY.replace("s3cr3t", "s3cr4t", 1),
        KEY.replace("ghbk_", "GHBK_"),
        KEY.replace("ghbk_", "ghs_"),
        KEY.swapcase(),
        KEY + "é",
        "Bearer " + KEY,
        "'" + KEY + "'",
    ],
)
def test_a_malformed_key_is_3_and_nothing_is_sent(run: Run, broker: FakeBroker, key: str) -> None:
    ran = run(*ARGUMENTS, "-v", BROKER_API_KEY=key)
    assert (ran.code, len(ran.lines), broker.seen) == (3, 1, [])
    assert "malformed" in ran.err
    assert "BROKER_API_KEY" in ran.err
    assert key.strip() not in ran.err or key == "x"


@pytest.mark.parametrize("around", ["{}", "{}\n", "  {}\r\n\n"])
def test_a_key_file_is_stripped(run: Run, tmp_path: Path, around: str) -> None:
    (tmp_path / "key").write_text(around.format(KEY))
    ran = run(*ARGUMENTS, BROKER_API_KEY=None, BROKER_API_KEY_FILE=str(tmp_path / "key"))
    assert ran.out == f"{TOKEN}\n"


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"\xff\xfe", KEY.encode() + b"\n" + KEY.encode(), b"x" * 10_000]
)
def test_a_key_file_with_something_else_is_3(
    run: Run, broker: FakeBroker, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "key").write_bytes(content)
    ran = run(*ARGUMENTS, BROKER_API_KEY=None, BROKER_API_KEY_FILE=str(tmp_path / "key"))
    assert (ran.code, len(ran.lines), broker.seen) == (3, 1, [])


def test_settings_that_contradict_or_miss(run: Run, broker: FakeBroker, tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    for code, named, environment in (
        (2, "both set", {"BROKER_API_KEY_FILE": missing}),
        (2, "No such file", {"BROKER_API_KEY": None, "BROKER_API_KEY_FILE": missing}),
        (2, "BROKER_API_URL is not set", {"BROKER_API_URL": None}),
        (2, "BROKER_API_URL is not set", {"BROKER_API_URL": ""}),
        (3, "there is no API key", {"BROKER_API_KEY": None}),
        (3, "there is no API key", {"BROKER_API_KEY": ""}),
    ):
        ran = run(*ARGUMENTS, **environment)  # type: ignore[arg-type]
        assert (ran.code, len(ran.lines)) == (code, 1)
        assert named in ran.err
    assert broker.seen == []


@pytest.mark.parametrize(
    "url",
    [
        "broker.example.com",
        "ftp://broker.example.com",
        "https://",
        "https:///x",
        "https://user:hunter2@broker.example.com",
        "https://broker.example.com?x=hunter2",
        "https://broker.example.com/#hunter2",
        "https://broker.example.com:0",
        "https://broker.example.com:x",
        "https://broker .example.com",
        "https://broker.example.com\n",
        "https://bröker.example.com",
        "https://a..b",
        "https://" + "a" * 64 + ".example",
        "https://broker.example.com/../x",
        "https://broker.example.com//x",
        "https://[::1",
        "https://[fe80::1%25eth0]",
        "https://127.0.0.1\\@evil.example",
        "file:///etc/passwd",
    ],
)
def test_an_address_that_is_no_address_is_2(run: Run, url: str) -> None:
    for ran in (run(*ARGUMENTS, BROKER_API_URL=url), run(*ARGUMENTS, "--api-url", url)):
        assert (ran.code, len(ran.lines)) == (2, 1)
        assert "hunter2" not in ran.err


@pytest.mark.parametrize(
    "url",
    [
        "http://broker.example.com",
        "http://10.0.0.1",
        "http://128.0.0.1",
        "http://0.0.0.0",
        "http://localhost.example.com",
        "http://[::2]",
        "http://127.0.0.1.example.com",
        "http://127.1",
    ],
)
def test_plain_http_to_another_machine_is_2(run: Run, url: str) -> None:
    ran = run(*ARGUMENTS, BROKER_API_URL=url)
    assert ran.code == 2
    assert "BROKER_ALLOW_INSECURE=1" in ran.err


@pytest.mark.parametrize("value", ["0", "", "true"])
def test_only_1_allows_it(run: Run, value: str) -> None:
    assert run(*ARGUMENTS, BROKER_API_URL="http://192.0.2.1", BROKER_ALLOW_INSECURE=value).code == 2


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1"])
def test_plain_http_to_this_machine_is_fine(run: Run, broker: FakeBroker, host: str) -> None:
    assert run(*ARGUMENTS, BROKER_API_URL=f"http://{host}:{broker.port}/").code == 0


def test_a_path_in_the_address_is_kept(run: Run, broker: FakeBroker) -> None:
    assert run(*ARGUMENTS, BROKER_API_URL=f"{broker.url}/gateway/broker/").code == 0
    assert broker.seen[0].path == "/gateway/broker/v1/github/token"


def test_the_flag_wins_over_the_environment_on_both_sides_of_the_command(
    run: Run, broker: FakeBroker
) -> None:
    nowhere = "http://127.0.0.1:9"
    assert run(*ARGUMENTS, "--api-url", broker.url, BROKER_API_URL=nowhere).code == 0
    assert run("--api-url", broker.url, *ARGUMENTS, BROKER_API_URL=nowhere).code == 0
    assert run("--api-url", nowhere, *ARGUMENTS, "--api-url", broker.url, BROKER_API_URL=None).code == 0


def test_the_profile_gives_address_and_key(run: Run, profile: Path) -> None:
    ran = run(*ARGUMENTS, BROKER_API_URL=None, BROKER_API_KEY=None)
    assert (ran.code, ran.out, ran.err) == (0, f"{TOKEN}\n", "")


def test_the_profile_is_found_by_xdg_unless_relative(run: Run, profile: Path, tmp_path: Path) -> None:
    moved = tmp_path / "xdg"
    (tmp_path / ".config").rename(moved)
    assert run(*ARGUMENTS, BROKER_API_URL=None, BROKER_API_KEY=None).code == 2
    assert run(*ARGUMENTS, BROKER_API_URL=None, BROKER_API_KEY=None, XDG_CONFIG_HOME=str(moved)).code == 0
    assert run(*ARGUMENTS, BROKER_API_URL=None, BROKER_API_KEY=None, XDG_CONFIG_HOME="xdg").code == 2


def test_the_profiles_address_with_a_key_of_the_environment(
    run: Run, broker: FakeBroker, profile: Path
) -> None:
    write(profile, {"version": 1, "api_url": broker.url})
    assert run(*ARGUMENTS, BROKER_API_URL=None).code == 0
    assert run(*ARGUMENTS, BROKER_API_URL=None, BROKER_API_KEY=None).code == 3


def test_the_same_address_in_another_spelling_gets_the_profiles_key(
    run: Run, broker: FakeBroker, profile: Path
) -> None:
    assert run(*ARGUMENTS, BROKER_API_URL=f"{broker.url}/", BROKER_API_KEY=None).code == 0


@pytest.mark.parametrize(
    "other", ["http://localhost:{port}", "http://127.0.0.1:{port}/other", "https://127.0.0.1:{port}"]
)
def test_a_profiles_key_goes_nowhere_else(run: Run, broker: FakeBroker, profile: Path, other: str) -> None:
    url = other.format(port=broker.port)
    for ran in (
        run(*ARGUMENTS, BROKER_API_URL=url, BROKER_API_KEY=None),
        run(*ARGUMENTS, "--api-url", url, BROKER_API_URL=None, BROKER_API_KEY=None),
    ):
        assert (ran.code, len(ran.lines), broker.seen) == (3, 1, [])
        assert f"no API key for {url}" in ran.err


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o666, 0o610])
def test_a_profile_that_others_can_touch_is_2(run: Run, broker: FakeBroker, profile: Path, mode: int) -> None:
    profile.chmod(mode)
    ran = run(*ARGUMENTS, BROKER_API_URL=None, BROKER_API_KEY=None)
    assert (ran.code, len(ran.lines), broker.seen) == (2, 1, [])
    assert f"chmod 600 {profile}" in ran.err


def test_a_profile_of_another_user_is_2(run: Run, broker: FakeBroker, profile: Path) -> None:
    if os.geteuid() == 0:
        os.chown(profile, 12345, 12345)
    else:  # only root can give a file away, but root's own files are another user's to everyone else
        profile.unlink()
        profile.symlink_to("/etc/passwd")
    ran = run(*ARGUMENTS, BROKER_API_URL=None, BROKER_API_KEY=None)
    assert (ran.code, broker.seen) == (2, [])
    assert "another user" in ran.err


def test_a_profile_that_is_not_needed_is_not_looked_at(run: Run, profile: Path) -> None:
    profile.chmod(0o644)
    assert run(*ARGUMENTS).code == 0


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 60_000,
        b"\xff",
        {},
        {"version": 2, "api_url": "https://b.example", "api_key": KEY},
        {"version": 1},
        {"version": 1, "api_url": 5},
        {"version": 1, "api_url": "https://b.example", "api_key": 5},
        {"version": 1, "api_url": "https://b.example", "ca_file": []},
        {"version": 1, "api_url": "http://b.example", "api_key": KEY},
    ],
)
def test_a_damaged_profile_is_2(run: Run, profile: Path, document: Any) -> None:
    write(profile, document)
    ran = run(*ARGUMENTS, BROKER_API_URL=None, BROKER_API_KEY=None)
    assert (ran.code, len(ran.lines)) == (2, 1)
    assert "profile" in ran.err


def test_a_damaged_key_in_the_profile_is_3(run: Run, broker: FakeBroker, profile: Path) -> None:
    write(profile, {"version": 1, "api_url": broker.url, "api_key": KEY[:-1]})
    assert run(*ARGUMENTS, BROKER_API_URL=None, BROKER_API_KEY=None).code == 3


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_a_profile_that_is_no_file_is_2(run: Run, profile: Path, kind: str) -> None:
    profile.unlink()
    if kind == "fifo":
        os.mkfifo(profile, 0o600)
    else:
        profile.mkdir(0o700)
    assert run(*ARGUMENTS, BROKER_API_URL=None, BROKER_API_KEY=None).code == 2
