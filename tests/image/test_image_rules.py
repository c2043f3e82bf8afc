"""What the Dockerfile promises to whoever reads it before trusting the image."""

import fnmatch
import re

from dockerfile_stage import ROOT, of, steps


def test_every_image_is_pinned_by_digest() -> None:
    own = {step.stage for step in steps()}
    for step in steps():
        image = step.text.split(" ")[0]
        if step.name == "FROM" and image not in own:
            assert re.fullmatch(r"[\w.\-/]+:[\w.\-]+@sha256:[0-9a-f]{64}", image), image
    for step in steps():
        for source in re.findall(r"--from=(\S+)", step.text):
            assert source in own


def test_the_last_stage_has_no_shell_and_runs_nothing_while_it_is_built() -> None:
    (start,) = of("final", "FROM")
    assert start.text == "base"
    (base,) = of("base", "FROM")
    assert base.text.startswith("gcr.io/distroless/cc-debian13:nonroot@")
    assert of("final", "RUN") == []


def test_it_runs_as_a_numbered_user_in_exec_form() -> None:
    (user,) = of("final", "USER")
    assert re.fullmatch(r"[1-9]\d{4,}:[1-9]\d{4,}", user.text)
    (entrypoint,) = of("final", "ENTRYPOINT")
    (health,) = of("final", "HEALTHCHECK")
    (command,) = of("final", "CMD")
    assert [*entrypoint.exec_form(), *command.exec_form()] == ["/opt/broker/bin/broker", "serve"]
    assert health.exec_form() == ["/opt/broker/bin/broker", "healthcheck"]


def test_nothing_is_installed_without_a_hash() -> None:
    installs = [step.text for step in of("build", "RUN")]
    for line in installs:
        for part in re.split(r"&&", line):
            if "pip install" in part:
                assert "--require-hashes -r requirements.txt" in part or "--no-deps --no-index" in part, part
            if "uv build" in part:
                assert "--build-constraints .ci/build-requirements.txt --require-hashes" in part
            assert not re.search(r"\b(curl|wget|apt-get|ADD)\b", part)


def test_the_requirements_of_the_build_hold_hashes_and_no_address() -> None:
    text = (ROOT / ".ci" / "build-requirements.txt").read_text()
    pins = re.findall(r"^[a-z][\w-]*==\S+ \\$", text, re.MULTILINE)
    assert any(pin.startswith("hatchling==") for pin in pins)
    assert text.count("--hash=sha256:") >= len(pins)
    assert "://" not in text


def test_the_context_is_what_the_build_reads() -> None:
    """An allow list: a key or .env beside the Dockerfile never gets into a layer."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    read = {
        "pyproject.toml",
        "requirements.txt",
        ".ci/build-requirements.txt",
        "broker",
        "cli",
        "hatch_build.py",
    }
    told = {"README.md", "SECURITY.md", "CHANGELOG.md", "LICENSE"}
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == read | told
    for name in ("broker/.env", "cli/app.pem", "broker/x/__pycache__"):
        assert any(fnmatch.fnmatch(name, pattern.replace("**/", "*")) for pattern in lines[1:]), name
