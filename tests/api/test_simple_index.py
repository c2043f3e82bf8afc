"""The client's own index: pages, files, headers, and what it is silent about."""

import asyncio
import hashlib
import re
import shutil
import threading
import zipfile
from collections.abc import Sequence
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from harness import World
from stage import until
from starlette.routing import Router

from broker import client_wheels
from broker.client_wheels import ClientWheel
from broker.errors import ClientWheelsError
from broker.web.middleware import Edge, not_found
from broker.web.simple_index import SimpleIndex

ROOT = Path(__file__).parents[2]
JSON = "application/vnd.pypi.simple.v1+json"
UV_ACCEPTS = f"{JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"


class Anchors(HTMLParser):
    """The anchors of a page, each with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.append(dict(attrs))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def wheels() -> Sequence[ClientWheel]:
    return client_wheels.load()


def client_of(index: SimpleIndex) -> httpx.AsyncClient:
    app = Edge(Router(routes=index.routes(), redirect_slashes=False, default=not_found), [])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://broker.test")


@pytest.fixture
def http(wheels: Sequence[ClientWheel]) -> httpx.AsyncClient:
    return client_of(SimpleIndex(lambda: wheels))


async def test_pages_and_files_agree(http: httpx.AsyncClient) -> None:
    """Everything that PEP 503, 658 and 691 let an installer ask for is there and has the hash it says."""
    root = await http.get("/simple/")
    (anchor,) = Anchors(root.text).found
    page = await http.get(urljoin("/simple/", str(anchor["href"])))
    assert page.headers["content-type"].startswith("text/html")
    (link,) = Anchors(page.text).found
    href, _, fragment = str(link["href"]).partition("#")
    wheel = await http.get(urljoin("/simple/broker-cli/", href))
    assert wheel.status_code == 200
    assert fragment == f"sha256={sha256(wheel.content)}"
    metadata = await http.get(urljoin("/simple/broker-cli/", href + ".metadata"))
    assert (
        link["data-core-metadata"] == link["data-dist-info-metadata"] == f"sha256={sha256(metadata.content)}"
    )
    with zipfile.ZipFile(BytesIO(wheel.content)) as archive:
        assert archive.testzip() is None
        (inside,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        assert archive.read(inside) == metadata.content
    assert f"Requires-Python: {link['data-requires-python']}\n" in metadata.text

    described = (await http.get("/simple/broker-cli/", headers={"accept": UV_ACCEPTS})).json()
    assert described["name"] == "broker-cli"
    assert described["meta"] == {"api-version": "1.1"}
    (file,) = described["files"]
    assert file == {
        "filename": href,
        "url": href,
        "hashes": {"sha256": sha256(wheel.content)},
        "requires-python": link["data-requires-python"],
        "size": len(wheel.content),
        "core-metadata": {"sha256": sha256(metadata.content)},
        "yanked": False,
    }
    assert described["versions"] == [href.split("-")[1]]
    listed = (await http.get("/simple/", headers={"accept": UV_ACCEPTS})).json()
    assert listed["projects"] == [{"name": "broker-cli"}]


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        ("*/*", False),
        ("text/html", False),
        ("application/vnd.pypi.simple.v1+html", False),
        (f"{JSON};q=0, text/html", False),
        (f"text/html;q=0.1,{JSON}", True),
        ("application/vnd.pypi.simple.latest+json", True),
    ],
)
async def test_the_form_is_what_the_installer_accepts(
    http: httpx.AsyncClient, accept: str, *, is_json: bool
) -> None:
    for path in ("/simple/", "/simple/broker-cli/"):
        page = await http.get(path, headers={"accept": accept})
        assert page.headers["content-type"].startswith(JSON if is_json else "text/html")
        assert page.headers["vary"].lower() == "accept"


async def test_answers_may_be_kept_for_ten_minutes(http: httpx.AsyncClient) -> None:
    wheel = (await http.get("/simple/broker-cli/", headers={"accept": UV_ACCEPTS})).json()["files"][0]["url"]
    for path in ("", "broker-cli/", f"broker-cli/{wheel}", f"broker-cli/{wheel}.metadata"):
        for ask in (http.get, http.head):
            answer = await ask(f"/simple/{path}")
            assert answer.status_code == 200
            assert answer.headers["cache-control"] == "max-age=600"
    first = await http.get(f"/simple/broker-cli/{wheel}")
    again = await http.get(f"/simple/broker-cli/{wheel}", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = await http.get(f"/simple/broker-cli/{wheel}", headers={"if-none-match": '"other"'})
    assert other.content == first.content
    part = await http.get(f"/simple/broker-cli/{wheel}", headers={"range": "bytes=0-9"})
    assert (part.status_code, part.content) == (200, first.content)


@pytest.mark.parametrize(
    "path",
    ["/simple/click/", "/simple/broker/", "/simple/broker-cli-extra/", "/click/", "/simple/click/x.whl"],
)
async def test_every_other_project_is_404(http: httpx.AsyncClient, path: str) -> None:
    """Nothing else lets an installer go on to its next index."""
    assert (await http.get(path)).status_code == 404
    assert (await http.head(path)).status_code == 404


@pytest.mark.parametrize(
    "name", ["no.whl", "broker_cli-0.0.3-py3-none-any.whl", "..%2F__init__.py", ".metadata"]
)
async def test_there_are_no_other_files(http: httpx.AsyncClient, name: str) -> None:
    assert (await http.get(f"/simple/broker-cli/{name}")).status_code == 404


@pytest.mark.parametrize("name", ["broker_cli", "Broker.CLI", "BROKER--cli", "broker-cli"])
async def test_the_client_is_found_however_its_name_is_written(http: httpx.AsyncClient, name: str) -> None:
    """With 404 an installer would take somebody else's from the public index."""
    assert (await http.get(f"/simple/{name}/")).status_code == 200


async def test_an_address_without_simple_leads_to_the_client(http: httpx.AsyncClient) -> None:
    answer = await http.get("/broker-cli/")
    assert answer.status_code == 301
    assert "://" not in answer.headers["location"]
    landed = urljoin("https://proxy.example.com/below/broker-cli/", answer.headers["location"])
    assert landed == "https://proxy.example.com/below/simple/broker-cli/"


async def test_without_a_client_nothing_is_not_found() -> None:
    """A broken installation ends an installer's run; "not found" would send it to the public index."""
    calls = []

    def load() -> Sequence[ClientWheel]:
        calls.append(1)
        return client_wheels.load(folder=Path("/nonexistent"), clone=Path("/nonexistent"))

    http = client_of(SimpleIndex(load))
    for path in ("/simple/broker-cli/", "/simple/broker-cli/broker_cli-0.1.0-py3-none-any.whl"):
        answer = await http.get(path)
        assert answer.status_code == 500
        assert "no client" in answer.json()["detail"]
    assert len(calls) == 2
    assert (await http.get("/simple/click/")).status_code == 404


async def test_the_wheels_are_loaded_once_for_all(wheels: Sequence[ClientWheel]) -> None:
    calls = []
    gate = threading.Event()

    def load() -> Sequence[ClientWheel]:
        calls.append(1)
        gate.wait(5)
        return wheels

    http = client_of(SimpleIndex(load))
    asked = [asyncio.create_task(http.get("/simple/broker-cli/")) for _ in range(5)]
    await until(lambda: bool(calls))
    gate.set()
    assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 5
    assert len(calls) == 1


def test_the_client_of_this_tree_and_those_of_earlier_releases(tmp_path: Path) -> None:
    """In a clone the client is what ``cli/`` holds at that moment, whatever lies in the folder."""
    source, folder = tmp_path / "cli", tmp_path / "wheels"
    shutil.copytree(ROOT / "cli", source, ignore=shutil.ignore_patterns("__pycache__"))
    folder.mkdir()
    (own,) = client_wheels.load(folder, source)
    earlier = folder / own.filename.replace(own.version, "0.0.9")
    earlier.write_bytes(own.content)
    (folder / own.filename).write_bytes(earlier.read_bytes())  # of this version, and soon a stale one
    (source / "broker_cli" / "__init__.py").write_text('"""Changed."""\n')

    found = {wheel.filename: wheel for wheel in client_wheels.load(folder, source)}
    assert set(found) == {earlier.name, own.filename}
    assert found[earlier.name].content == own.content
    with zipfile.ZipFile(BytesIO(found[own.filename].content)) as archive:
        assert archive.read("broker_cli/__init__.py") == b'"""Changed."""\n'

    installed = client_wheels.load(folder, tmp_path / "no clone")
    assert [wheel.filename for wheel in installed] == [earlier.name, own.filename]


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04"])
def test_a_damaged_wheel_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broker_cli-0.1.0-py3-none-any.whl").write_bytes(content)
    with pytest.raises(ClientWheelsError):
        client_wheels.load(tmp_path, tmp_path)


async def test_the_service_serves_it_to_all(world: World) -> None:
    async with world.inside() as app:
        page = await app.http.get("/simple/broker-cli/")
        assert page.status_code == 200
        (link,) = Anchors(page.text).found
        answer = await app.http.get(f"/simple/broker-cli/{link['href']}")
        assert answer.status_code == 200
        assert re.fullmatch(r"[\w.-]+", answer.headers["x-request-id"])
