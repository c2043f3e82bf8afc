"""``broker healthcheck``: what the image's HEALTHCHECK and the pod of `helm test` run."""

import pytest
from harness import World
from servers import certificate, free_port, until


def test_it_asks_the_broker_of_this_machine_or_any_url(world: World) -> None:
    service = world.service()
    # As it is in a pod, and without any secret.
    here = {"BROKER_PORT": str(service.port), "BROKER_HOST": "0.0.0.0", "BROKER_GITHUB_PRIVATE_KEY": ""}  # noqa: S104
    there = world.command("healthcheck", **here)
    assert (there.returncode, there.stdout, there.stderr) == (0, "", "")
    assert world.command("healthcheck", f"{service.url}/readyz").returncode == 0
    wrong = world.command("healthcheck", f"{service.url}/nowhere")
    assert (wrong.returncode, wrong.stderr) == (1, f"broker: {service.url}/nowhere answers 404\n")
    gone = world.command("healthcheck", BROKER_PORT=str(free_port()))
    assert gone.returncode == 1
    assert gone.stderr.startswith("broker: http://127.0.0.1:")


@pytest.mark.slow
def test_it_works_with_a_certificate_for_another_name(world: World) -> None:
    cert, private = certificate(world.folder)
    tls = {"BROKER_TLS_CERT_FILE": str(cert), "BROKER_TLS_KEY_FILE": str(private)}
    service = world.service(start=False, **tls).start(wait=False)
    port = str(service.port)
    until(lambda: world.command("healthcheck", BROKER_PORT=port, **tls).returncode == 0, seconds=60)
    assert world.command("healthcheck", BROKER_PORT=port).returncode == 1  # spoken to as http
