"""SECURITY: whoever reads the whole store, all logs or the process list gets no token, key, JWT or PEM."""

import asyncio
import base64
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from harness import Service, World, bearer, clean_environment, unknown_key
from redis import Redis
from servers import RedisServer

from broker.sandbox.github import Fault

LEAST_LINE = 40


class Secrets:
    """Everything that must be nowhere, by what it is."""

    def __init__(self) -> None:
        self.found: dict[bytes, str] = {}

    def add(self, what: str, text: str) -> None:
        assert len(text) >= 12, what
        self.found[text.encode()] = what
        self.found[base64.b64encode(text.encode())] = f"{what} in base64"

    def add_key(self, what: str, key: str) -> None:
        self.add(what, key)
        self.add(f"{what} (its secret part)", key[18:])

    def add_pem(self, what: str, pem: str) -> None:
        lines = [line for line in pem.splitlines() if len(line) >= LEAST_LINE and "-----" not in line]
        assert len(lines) > 10
        for line in lines:
            self.add(what, line)

    def add_traffic(self, world: World) -> None:
        """Add what the emulator minted and what was presented to it."""
        for text in world.github.tokens:
            self.add("token", text)
            if "_" in text and "." in text:
                self.add("token's signature", text.rpartition(".")[2])
        for call in world.github.calls:
            if call.authorization == "jwt":
                self.add("app JWT", call.credential)
                self.add("app JWT's signature", call.credential.rpartition(".")[2])

    def in_(self, haystack: bytes) -> list[str]:
        """Return what was found, with the words before it: where it stands, not what it is."""
        found = []
        for text, what in self.found.items():
            at = haystack.find(text)
            if at >= 0:
                found.append(f"{what} behind {haystack[max(0, at - 160) : at]!r}")
        return sorted(found)


@pytest.fixture
def redis_of_its_own(tmp_path: Path) -> Iterator[RedisServer]:
    """Append-only with plain text: its file holds every value that was ever written."""
    server = RedisServer(
        tmp_path / "redis",
        persistent=True,
        options=("--rdbcompression", "no", "--aof-use-rdb-preamble", "no"),
    )
    try:
        yield server.start()
    finally:
        server.stop()


def dump_redis(server: RedisServer) -> bytes:
    """Return every value by the command for its type, and the bytes of every file the server wrote."""
    found = bytearray()
    with Redis(port=server.port) as redis:
        names = list(redis.scan_iter(count=1000))
        assert len(names) > 5
        for name in names:
            kind = redis.type(name)
            found += b"\n" + name + b" "
            if kind == b"string":
                found += redis.get(name) or b""
            elif kind == b"hash":
                found += b" ".join(part for pair in redis.hgetall(name).items() for part in pair)
            elif kind == b"zset":
                found += b" ".join(redis.zrange(name, 0, -1))
            elif kind == b"set":
                found += b" ".join(redis.smembers(name))
            elif kind == b"list":
                found += b" ".join(redis.lrange(name, 0, -1))
            else:
                assert kind == b"stream", kind
                for _, fields in redis.xrange(name):
                    found += b" ".join(part for pair in fields.items() for part in pair)
        redis.save()
    return bytes(found)


def files_below(folder: Path, *patterns: str) -> bytes:
    paths = [path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()]
    assert paths
    return b"\n".join(path.read_bytes() for path in paths)


@pytest.mark.parametrize("store", ["sqlite", "redis"])
async def test_dump_of_store_logs_and_process_list(
    store: str, world: World, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    await _nothing_is_found(store, world, request, tmp_path, quoting=False)


async def test_dump_after_a_github_that_quotes_secrets(
    world: World, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    await _nothing_is_found("sqlite", world, request, tmp_path, quoting=True)


async def _nothing_is_found(
    store: str, world: World, request: pytest.FixtureRequest, tmp_path: Path, *, quoting: bool
) -> None:
    secrets = Secrets()
    server: RedisServer | None = None
    if store == "redis":
        server = request.getfixturevalue("redis_of_its_own")
        world.store_url = server.url
    world.github.token_shape = "mixed"
    admin = world.command("keys", "generate").stdout.strip()
    secrets.add_key("bootstrap admin key", admin)
    secrets.add_pem("private key", world.pem)
    second = world.app.new_private_key()
    secrets.add_pem("second private key", second)

    pem_file = tmp_path / "app.pem"
    pem_file.write_text(world.pem)
    started = [
        world.service(start=False, BROKER_ADMIN_KEY=admin, BROKER_FAILURE_COOLDOWN="0.1"),
        world.service(
            start=False,
            BROKER_GITHUB_PRIVATE_KEY="",
            BROKER_GITHUB_PRIVATE_KEY_FILE=str(pem_file),
            BROKER_LOG_FORMAT="console",
            BROKER_FAILURE_COOLDOWN="0.1",
        ),
    ]
    for service in started:
        service.start(wait=False)
    for service in started:
        service.wait_ready()
    keys = {
        "key": world.key("acme/*", permissions=("contents", "issues")),
        "narrow key": await world.quick_key("acme/gadgets"),
        "stranger's key": await world.quick_key("stranger/*"),
        "revoked key": await world.quick_key("acme/*"),
    }
    keys["unknown key"] = unknown_key()
    for what, key in keys.items():
        secrets.add_key(what, key)

    answers = await _a_full_run(world, started, keys, quoting=quoting)
    listings = [
        world.client_of(
            started[0].url,
            admin if arguments[0] == "admin" else keys["key"],
            *("-v", *arguments),
            GIT_CONFIG_GLOBAL=str(tmp_path / "gitconfig"),
        )
        # What the client prints depends on none of the three: each of them does with a few.
        for arguments in CLIENT_CALLS[: None if store == "sqlite" and not quoting else 4]
    ]
    fill = _with_a_secret_on_stdout(world, started[0], admin, keys["key"], secrets)
    listings.append(world.command("keys", "list"))
    listings.append(world.command("keys", "list", "--json", BROKER_LOG_LEVEL="debug"))
    listings.append(world.command("serve", BROKER_GITHUB_PRIVATE_KEY=world.pem.replace("A", "B", 40)))
    secrets.add_traffic(world)
    assert len(world.github.tokens) >= 5
    assert sum(what == "app JWT" for what in secrets.found.values()) >= 1

    for service in started:
        assert service.process is not None
        for process in _with_children(service.process.pid):
            assert secrets.in_(_command_line(process)) == []
    for refusal in answers:
        assert secrets.in_(refusal) == [], refusal
    assert secrets.in_(fill.stdout.encode())  # what is printed on purpose is found
    for done in (*listings, fill):
        assert secrets.in_(done.stderr.encode()) == [], done.args
    for done in listings:
        assert secrets.in_(done.stdout.encode()) == [], done.args
    living = dump_redis(server) if server else files_below(tmp_path, "broker.db", "broker.db-wal")
    for service in started:
        service.stop()
    ended = files_below(tmp_path / "redis", "*") if server else files_below(tmp_path, "broker.db*")

    # What was looked through is what it should be: the audit is in it, and every key's public part.
    assert b"token.issued" in living
    assert keys["key"][5:17].encode() in living
    logs = [service.log() for service in started]
    for log in logs:
        for word in ("token.issued", "token.denied", "refused"):
            assert word in log, word
        assert "Traceback" not in log
    assert '"level":"debug"' in logs[0]

    for haystack in (living, ended, *(log.encode() for log in logs)):
        assert secrets.in_(haystack) == []
        # And nothing that looks like one, whoever's it is.
        assert re.findall(rb"ghs_(?!\[)[A-Za-z0-9._-]{20,}", haystack) == []
        assert re.findall(rb"eyJ[A-Za-z0-9_-]{10,}\.", haystack) == []
        assert re.findall(rb".{0,200}ghbk_[0-9A-Za-z]{12}_.", haystack) == []
        assert b"PRIVATE KEY" not in haystack


CLIENT_CALLS = (
    ("github", "ls"),
    ("whoami",),
    ("doctor",),
    ("github", "token", "acme/nothing"),
    ("github", "token", "acme/widgets", "--output", "token"),
    ("github", "setup", "--print"),
    ("exec", "--repo", "acme/widgets", "--", "true"),
    ("exec", "--repo", "acme/widgets", "--", "no-such-command"),
    ("setup-git", "--host", "github.example"),
    ("setup-git", "--host", "github.example", "--undo"),
    ("admin", "keys", "list"),
    ("admin", "keys", "list", "--json"),
    ("admin", "keys", "revoke", "000000000000"),
    ("admin", "block", "acme/gadgets", "--reason", "incident"),
    ("admin", "blocks", "--json"),
    ("admin", "unblock", "acme/gadgets"),
    ("admin", "revoke", "--repository", "acme/gadgets", "--reason", "incident"),
    ("admin", "installations", "sync"),
    ("admin", "installations", "list", "--json"),
    ("admin", "audit", "--limit", "0", "--json"),
)


def _with_a_secret_on_stdout(
    world: World, service: Service, admin: str, key: str, secrets: Secrets
) -> subprocess.CompletedProcess[str]:
    """Run what prints a token or a key, where it is wanted; return the run: all else of it tells nothing."""
    made = world.client(service, admin, "admin", "keys", "create", "--name", "x", "--repository", "acme/*")
    assert made.returncode == 0, made.stderr
    secrets.add_key("key made over the API", made.stdout.strip())
    host = world.server.url.partition("//")[2]
    done = subprocess.run(
        world.client_command("-v", "git-credential", "get"),
        env=clean_environment(BROKER_API_URL=service.url, BROKER_API_KEY=key),
        input=f"protocol=http\nhost={host}\npath=acme/widgets.git\n\n",
        cwd=world.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "\npassword=ghs_" in done.stdout, done.stderr
    return done


async def _a_full_run(
    world: World, services: list[Service], keys: dict[str, str], *, quoting: bool
) -> list[bytes]:
    """Mint, serve, refuse, fail and be attacked on every service; return every answer that was no token."""
    answers: list[bytes] = []
    async with httpx.AsyncClient(timeout=30) as http:

        async def ask(service: Service, key: str, *repositories: str, **more: object) -> int:
            answer = await http.post(
                f"{service.url}/v1/github/token",
                json={"repositories": list(repositories), **more},
                headers=bearer(key),
            )
            if answer.status_code != 200:
                answers.append(answer.content)
            return answer.status_code

        assert world.command("keys", "revoke", keys["revoked key"][5:17]).returncode == 0
        for place, service in enumerate(services):
            assert await ask(service, keys["key"], "acme/widgets") == 200
            assert await ask(service, keys["narrow key"], "acme/gadgets") == 200
            assert await ask(service, keys["key"], "acme/widgets", "acme/gadgets") == 200
            assert await ask(service, keys["key"], "acme/widgets", refresh=True) == 200
            assert await ask(service, keys["key"], "acme/widgets", permissions={"issues": "read"}) == 200
            assert await ask(service, keys["narrow key"], "acme/widgets") == 403
            assert await ask(service, keys["key"], "acme/nothing") == 404
            assert await ask(service, keys["stranger's key"], "stranger/secrets") == 404
            for bad in ("revoked key", "unknown key"):
                assert await ask(service, keys[bad], "acme/widgets") == 401
            await _attack(http, service, keys["key"], answers)
            await _github_misbehaves(world, ask, service, keys["key"], place, quoting=quoting)
    return answers


async def _attack(http: httpx.AsyncClient, service: Service, key: str, answers: list[bytes]) -> None:
    """Put the key, and texts like it, wherever a careless log or error would repeat them."""
    url = f"{service.url}/v1/github/token"
    body = {"repositories": ["acme/widgets"]}
    mistyped = key[:-1] + ("0" if key[-1] != "0" else "1")
    odd: list[dict[str, object]] = [
        {"headers": bearer(mistyped), "json": body},
        {"headers": {"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}"}, "json": body},
        {"headers": {"Authorization": f"token {key}"}, "json": body},
        {"headers": [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {key}")], "json": body},
        {"headers": bearer(key), "json": {"repositories": [key]}},
        {"headers": bearer(key), "json": {"repositories": [f"acme/{key}"]}},
        {"headers": bearer(key), "json": {key: key}},
        {"headers": bearer(key), "json": {**body, "permissions": {key: key}}},
        {"headers": bearer(key), "json": {**body, "permissions": {"contents": key}}},
        {"headers": bearer(key), "json": {**body, "host": key}},
        {"headers": bearer(key), "json": {"owner": key}},
        {"headers": {**bearer(key), "Content-Type": "application/json"}, "content": key.encode()},
        {"headers": {**bearer(key), "Content-Type": key}, "content": b"{}"},
        {"headers": {**bearer(key), "X-Request-Id": key}, "json": {"repositories": ["x"]}},
        {"headers": {**bearer(key), "X-Forwarded-For": key}, "json": {"repositories": ["x"]}},
        {"headers": {**bearer(key), "Cookie": key, "User-Agent": key}, "json": {"repositories": []}},
    ]
    for one in odd:
        answer = await http.post(url, **one)
        assert 400 <= answer.status_code < 500, (one, answer.text)
        answers.append(answer.content)
    for path in (f"/v1/{key}", f"/v1/github/repositories?cursor={key}", f"/v1/whoami?key={key}", f"/{key}"):
        answer = await http.get(service.url + path, headers=bearer(key))
        assert 400 <= answer.status_code < 500, path
        answers.append(answer.content)
    head = f"POST /v1/github/token HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    for raw in (
        f"GET /{key} HTTP/9.9\r\n\r\n",
        f"{key}\r\n\r\n",
        f"{head}Content-Length: zz\r\n\r\n",
        f"{head}{key}\r\n\r\n",
        f"{head}Content-Length: 50\r\n\r\n{{",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(raw.encode())
        writer.write_eof()
        answers.append(await asyncio.wait_for(reader.read(), 10))
        writer.close()


async def _github_misbehaves(
    world: World, ask: object, service: Service, key: str, place: int, *, quoting: bool
) -> None:
    """Every refusal and failure of GitHub on scopes of their own, replies that quote secrets included."""
    assert callable(ask)
    world.github.over_grant_permissions = {"administration": "write"}
    name = f"acme/over-{place}"
    world.github.add_repository(name)
    assert await ask(service, key, name) == 502
    world.github.over_grant_permissions = {}
    said = {"message": f"{world.pem} {key} ghs_{'q' * 60}" if quoting else 'Something about "authorization"'}
    for number, fault in enumerate(
        (
            Fault(route="mint", times=1, status=401, body=said),
            Fault(route="mint", times=1, status=403, body=said),
            Fault(route="mint", times=1, status=422, body=said),
            Fault(route="mint", times=3, status=500, body=said),
            Fault(route="mint", times=3, reset=True),
            Fault(route="mint", times=1, truncate=True),
            Fault(route="mint", times=1, rewrite=lambda reply: {**reply, "expires_at": reply["token"]}),
            Fault(route="mint", times=1, rewrite=lambda reply: {**reply, "repositories": reply["token"]}),
            Fault(route="mint", times=1, rewrite=lambda reply: [reply["token"]]),
            Fault(
                route="mint",
                times=1,
                rewrite=lambda reply: {**reply, "permissions": {reply["token"] if quoting else "x": "read"}},
            ),
        )
    ):
        if number % 2 != place:
            continue  # each service, and so each form of log, gets half of them: some take seconds
        name = f"acme/odd-{place}-{number}"
        world.github.add_repository(name)
        world.github.faults.add(fault)
        status = await ask(service, key, name)
        assert status in {200, 403, 404, 422, 502, 503, 504}, (number, status)
        world.github.faults.clear()
    world.github.faults.clear()


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _with_children(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _with_children(int(child))
    return found


def test_a_repr_shows_no_secret(world: World) -> None:
    """Settings, and what a debugger or an error report would print of them."""
    settings = world.settings(admin_key=unknown_key(), store_url="redis://:hidden-word@127.0.0.1/0")
    secrets = Secrets()
    secrets.add_pem("private key", world.pem)
    secrets.add("password", "hidden-word-" * 2)
    shown = repr(settings) + str(settings) + json.dumps(settings.model_dump(mode="json"), default=str)
    assert secrets.in_(shown.encode()) == []
    assert "hidden-word" not in shown
    assert "hidden-word" not in repr(vars(settings))


def test_the_environment_of_children_is_not_printed(world: World) -> None:
    """``broker serve`` with a wrong setting says what is wrong, not what the value was."""
    done = world.command(
        "serve", BROKER_ENCRYPTION_KEYS="not-a-key-but-secret", BROKER_PROXY_URL="http://u:p4ss@x"
    )
    assert done.returncode == 2
    assert "BROKER_ENCRYPTION_KEYS" in done.stderr
    assert "not-a-key-but-secret" not in done.stderr
    assert "p4ss" not in done.stderr
