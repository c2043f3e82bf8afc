"""`broker demo --serve` as a new user has it: what it prints is pasted into another shell."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from harness import SCRIPTS, clean_environment

ROOT = Path(__file__).parents[2]
UV_RUN = "uv run "


def test_the_printed_lines_are_pasted(tmp_path: Path) -> None:
    log = tmp_path / "demo.txt"
    with log.open("wb") as out:
        demo = subprocess.Popen(
            [str(SCRIPTS / "broker"), "demo", "--serve"],
            env=clean_environment(),
            cwd=tmp_path,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 90
        while "Ctrl-C ends it" not in log.read_text():
            assert demo.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        pasted = log.read_text().partition("It stays up.")[2]
        lines = [line.strip() for line in pasted.splitlines() if line.startswith("  ")]
        *lines, by_index = lines
        assert by_index.startswith("UV_INDEX=http://127.0.0.1:")
        assert len(lines) == 7
        # `uv run` would only find the same commands again; they are the ones of this environment.
        script = "\n".join(f"{line.replace(UV_RUN, '')}\necho status $?" for line in lines)
        done = subprocess.run(
            ["bash", "-c", script],
            env=clean_environment(PATH=f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", HOME=str(tmp_path)),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        said = [line for line in done.stdout.splitlines() if line.startswith("status")]
        # set, set, token, clone, refused, revoked, refused
        assert said == [f"status {n}" for n in (0, 0, 0, 0, 1, 0, 3)], done.stdout + done.stderr
        assert "ghs_" in done.stdout
        assert "Cloning into" in done.stderr
        demo.send_signal(signal.SIGTERM)
        demo.wait(40)
        with pytest.raises(OSError, match="refused"):  # the service that it started has ended too
            socket.create_connection(("127.0.0.1", int(lines[0].rpartition(":")[2])), timeout=5)
    finally:
        if demo.poll() is None:
            demo.send_signal(signal.SIGINT)
            demo.wait(40)
