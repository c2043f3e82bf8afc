"""The Valkey pod's command and configuration, run with a real Valkey."""

import re
import subprocess
from pathlib import Path

import pytest
import redis
from chart_stage import Helm, kinds, one, values_of
from servers import free_port, server_binary, until


@pytest.fixture
def secret(helm: Helm) -> dict[str, str]:
    secrets = kinds(helm.rendered("-f", values_of("valkey")), "Secret")
    (found,) = (item["stringData"] for item in secrets if "password" in item["stringData"])
    return dict(found)


def test_it_keeps_what_it_answered_and_lets_nobody_in_without_password(
    helm: Helm, secret: dict[str, str], tmp_path: Path
) -> None:
    manifests = helm.rendered("-f", values_of("valkey"))
    (container,) = one(manifests, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    config = next(item["data"] for item in kinds(manifests, "ConfigMap") if "valkey.conf" in item["data"])
    port = free_port()

    def here(text: str) -> str:
        moved = re.sub(r"/(etc/valkey-auth|etc/valkey|data)\b", rf"{tmp_path}/\1", text)
        return moved.replace("6379", str(port))

    for folder in ("etc/valkey-auth", "etc/valkey", "data", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/valkey/valkey.conf").write_text(here(config["valkey.conf"]) + "\nbind 127.0.0.1\n")
    (tmp_path / "etc/valkey-auth/password").write_text(secret["password"])
    (tmp_path / "bin/valkey-server").symlink_to(server_binary())
    command = [here(word) for word in container["command"]]
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env={"PATH": path}, stdout=log, stderr=log)
    try:
        with redis.Redis(port=port, password=secret["password"]) as client:

            def answers() -> bool:
                try:
                    return bool(client.ping())
                except redis.ConnectionError:
                    assert process.poll() is None, (tmp_path / "log").read_text()
                    return False

            until(answers, seconds=30)
            kept = client.config_get("appendonly", "appendfsync", "maxmemory-policy")
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert kept == {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"valkey-server" in words
        assert secret["password"].encode() not in words
    finally:
        process.terminate()
        process.wait(30)
    assert any((tmp_path / "data").rglob("*.aof"))


def test_the_url_names_its_service_and_password(helm: Helm, secret: dict[str, str]) -> None:
    services = {
        item["metadata"]["name"] for item in kinds(helm.rendered("-f", values_of("valkey")), "Service")
    }
    target = re.fullmatch(r"redis://:(\w+)@([\w-]+):6379/0", secret["url"])
    assert target is not None
    assert target[1] == secret["password"]
    assert target[2] in services
