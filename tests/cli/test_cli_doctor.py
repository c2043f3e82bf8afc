"""`broker-cli doctor`: for each likely mistake the finding, the next step and the exit status."""

from __future__ import annotations

import email.utils
import socket
import ssl
import time
from typing import TYPE_CHECKING

import pytest
from cli_stage import KEY, WHOAMI, FakeBroker, Say, problem
from servers import certificate, free_port

from broker_cli import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from cli_stage import Here, Ran

READY = Say(200, {"status": "ok", "checks": {"store": "ok", "github": "unknown", "private_key": "ok"}})


@pytest.fixture
def patient(here: Here, broker: FakeBroker) -> Here:
    """A machine where all is well, but that git is not set up."""
    broker.answers = [READY, Say(200, WHOAMI)]
    bin_folder = here.home / "bin"
    bin_folder.mkdir()
    (bin_folder / "broker-cli").write_text("#!/bin/sh\n")
    (bin_folder / "broker-cli").chmod(0o755)
    here.monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    here.monkeypatch.setattr("sys.argv", [str(bin_folder / "broker-cli")])
    return here


def wrong(ran: Ran) -> list[str]:
    return [line for line in ran.out.splitlines() if line.startswith("WRONG ")]


def hints(ran: Ran) -> list[str]:
    return [line for line in ran.out.splitlines() if line.startswith("hint ")]


def test_all_is_well_once_git_is_set_up(patient: Here, broker: FakeBroker) -> None:
    ran = patient("doctor")
    assert (ran.code, wrong(ran), ran.err) == (0, [], "")
    (hint,) = hints(ran)
    assert "broker-cli setup-git" in hint
    assert [one.path for one in broker.seen] == ["/readyz", "/v1/whoami"]
    assert "Authorization" not in broker.seen[0].headers
    broker.answers = [Say(200, WHOAMI)]
    assert patient("setup-git").code == 0
    broker.answers = [READY, Say(200, WHOAMI)]
    ran = patient("doctor")
    assert (ran.code, wrong(ran), hints(ran)) == (0, [], [])
    assert all(line.startswith("ok ") for line in ran.out.splitlines())


@pytest.mark.parametrize(
    ("environment", "status", "says"),
    [
        ({"BROKER_API_URL": None}, 2, "BROKER_API_URL is not set"),
        ({"BROKER_API_URL": "broker.example.com"}, 2, "https://"),
        ({"BROKER_API_URL": "http://broker.example.com"}, 2, "plain http"),
        ({"BROKER_API_KEY": None}, 3, "broker-cli login"),
        ({"BROKER_API_KEY": KEY[:-1]}, 3, "malformed"),
        ({"BROKER_API_KEY": KEY[:-1] + "~"}, 3, "malformed"),
        ({"BROKER_API_KEY_FILE": "/nothing"}, 2, "both set"),
        ({"BROKER_CA_FILE": "/nothing", "BROKER_API_URL": "https://127.0.0.1:1"}, 2, "CA file"),
    ],
)
def test_settings(patient: Here, environment: dict[str, str | None], status: int, says: str) -> None:
    for name, value in environment.items():
        if value is None:
            patient.monkeypatch.delenv(name)
        else:
            patient.monkeypatch.setenv(name, value)
    ran = patient("doctor")
    assert ran.code == status
    assert says in wrong(ran)[0]


def test_a_missing_key_does_not_keep_it_from_looking_at_the_broker(patient: Here, broker: FakeBroker) -> None:
    patient.monkeypatch.delenv("BROKER_API_KEY")
    broker.answers = [Say(200, {"status": "degraded", "checks": {"store": "ok", "github": "rejected"}})]
    ran = patient("doctor")
    assert ran.code == 3
    assert len(wrong(ran)) == 2
    assert "github: rejected" in wrong(ran)[1]
    assert "store" not in wrong(ran)[1].replace("github", "")


def test_a_name_that_nobody_knows(patient: Here) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    patient.monkeypatch.setattr(socket, "getaddrinfo", unknown)
    patient.monkeypatch.setenv("BROKER_API_URL", "https://broker.invalid")
    ran = patient("doctor")
    assert ran.code == 4
    assert "cannot resolve the host broker.invalid" in wrong(ran)[0]


def test_nobody_listens(patient: Here) -> None:
    patient.monkeypatch.setenv("BROKER_API_URL", f"http://127.0.0.1:{free_port()}")
    ran = patient("doctor")
    assert ran.code == 4
    assert "Connection refused" in wrong(ran)[0]


def test_tls(patient: Here, broker: FakeBroker, tmp_path: Path) -> None:
    patient.monkeypatch.setenv("BROKER_API_URL", broker.url.replace("http:", "https:"))
    ran = patient("doctor")
    assert ran.code == 4
    assert "does it speak https" in wrong(ran)[0]
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    secure = FakeBroker(context)
    try:
        secure.answers = [READY]
        patient.monkeypatch.setenv("BROKER_API_URL", secure.url)
        ran = patient("doctor")
        assert ran.code == 4
        assert "BROKER_CA_FILE" in wrong(ran)[0]
        patient.monkeypatch.setenv("BROKER_CA_FILE", str(cert))
        secure.answers = [READY, Say(200, WHOAMI)]
        assert wrong(patient("doctor")) == []
    finally:
        secure.close()


@pytest.mark.parametrize(
    "answer",
    [
        Say(200, b"<html>", kind="text/html"),
        Say(200, {}),
        Say(404, b"no", kind="text/plain"),
        Say(302, b"", {"Location": "https://x"}),
    ],
)
def test_something_else_answers(patient: Here, broker: FakeBroker, answer: Say) -> None:
    broker.answers = [answer, problem(404, "not_found")]
    ran = patient("doctor")
    assert ran.code == 4
    assert "not as a broker does" in wrong(ran)[0]


def test_the_key_is_refused(patient: Here, broker: FakeBroker) -> None:
    broker.answers = [READY, problem(401, "invalid_api_key")]
    ran = patient("doctor")
    assert ran.code == 3
    assert "ask its admin for a new one" in wrong(ran)[0]


@pytest.mark.parametrize(("off_s", "way"), [(3600, "behind"), (-3600, "ahead of")])
def test_a_clock_that_is_off(patient: Here, broker: FakeBroker, off_s: int, way: str) -> None:
    def answer(handler: object) -> None:
        date = email.utils.formatdate(time.time() + off_s, usegmt=True)
        body = b'{"status":"ok","checks":{}}'
        head = f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: {len(body)}\r\n\r\n"
        handler.wfile.write(head.encode() + body)  # type: ignore[attr-defined]

    broker.answers = [Say(act=answer), Say(200, WHOAMI)]
    ran = patient("doctor")
    assert ran.code == 0
    assert any("clock is 3" in line and way in line for line in hints(ran))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"expires_at": "2026-11-22T10:00:00Z"}, "the key expires 2026-11-22T10:00:00Z"),
        ({"broker": {**WHOAMI["broker"], "version": "0.0.1"}}, f"version 0.0.1, this client {__version__}"),  # type: ignore[dict-item]
        ({"broker": {**WHOAMI["broker"], "install_url": None}}, "has not heard from GitHub"),  # type: ignore[dict-item]
    ],
)
def test_what_the_broker_says_of_itself(
    patient: Here, broker: FakeBroker, change: dict[str, object], says: str
) -> None:
    broker.answers = [READY, Say(200, {**WHOAMI, **change})]
    ran = patient("doctor")
    assert (ran.code, wrong(ran)) == (0, [])
    assert any(says in line for line in hints(ran))


@pytest.mark.parametrize("expires_at", ["2090-01-01T00:00:00Z", "nonsense", "2026-11-22T10:00:00"])
def test_an_expiry_far_off_or_unintelligible_is_no_finding(
    patient: Here, broker: FakeBroker, expires_at: str
) -> None:
    broker.answers = [READY, Say(200, {**WHOAMI, "expires_at": expires_at})]
    ran = patient("doctor")
    assert ran.code == 0
    assert ("expires" in ran.out) == (expires_at == "2026-11-22T10:00:00")


def test_an_older_broker_that_says_nothing_of_itself(patient: Here, broker: FakeBroker) -> None:
    broker.answers = [READY, Say(200, {name: value for name, value in WHOAMI.items() if name != "broker"})]
    ran = patient("doctor")
    assert ran.code == 4
    assert "one version" in wrong(ran)[0]


def test_somebody_elses_broker_cli_comes_first_on_path(patient: Here, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "broker-cli").write_text("#!/bin/sh\ntouch started\n")
    (other / "broker-cli").chmod(0o755)
    patient.monkeypatch.setenv("PATH", f"{other}:{tmp_path / 'bin'}:/usr/bin:/bin")
    ran = patient("doctor")
    assert ran.code == 0
    assert any(str(other / "broker-cli") in line and "somebody else" in line for line in hints(ran))
    assert not (tmp_path / "started").exists()
    patient.monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert any("no broker-cli is on PATH" in line for line in hints(patient("doctor")))


def test_git_that_is_set_up_wrong(patient: Here, broker: FakeBroker) -> None:
    def look() -> Ran:
        broker.answers = [READY, Say(200, WHOAMI)]
        return patient("doctor")

    broker.answers = [Say(200, WHOAMI)]
    patient("setup-git")
    configuration = patient.home / ".gitconfig"
    good = configuration.read_text()
    configuration.write_text(good.replace("useHttpPath = true", ""))
    ran = look()
    assert (ran.code, len(wrong(ran))) == (2, 1)
    assert "useHttpPath" in wrong(ran)[0]
    configuration.write_text(good + "\thelper = store\n")
    assert any("other helpers" in line for line in hints(look()))
    configuration.write_text(good.replace(str(patient.home / "bin"), "/gone"))
    ran = look()
    assert (ran.code, len(wrong(ran))) == (2, 1)
    assert "/gone/broker-cli is not there" in wrong(ran)[0]
    patient.monkeypatch.setenv("PATH", str(patient.home / "bin"))
    assert any("is it installed" in line for line in hints(look()))
