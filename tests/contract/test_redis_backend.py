"""What only Redis can do to us: vanish, freeze, forget, move, be a replica, be somebody else's."""

import asyncio
import contextlib
import logging
import shutil
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from servers import RedisServer, certificate, proxy, running, until
from test_backend import ID, SCOPE, SHA, acquiring, committing, keying, mint, owning, row, started
from test_ending import NOTE, ending, mint_some

from broker.errors import InvalidRequestError, SettingsError, StoreUnavailableError
from broker.model import Secret
from broker.store.backend import AuditWant, Want, epoch_of
from broker.store.batch import Batcher
from broker.store.redis import RedisBackend
from broker.store.redis_connect import Link, Primary, Unit
from broker.store.redis_url import parse_redis_url

Connect = Callable[..., Awaitable[RedisBackend]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Open backends by URL; ``lazy`` leaves connecting to the first verb."""
    opened: list[RedisBackend] = []

    async def open_one(url: str, *, lazy: bool = False, deadline_s: float = 1.0) -> RedisBackend:
        backend = RedisBackend(Secret(url), deadline_s=deadline_s)
        opened.append(backend)
        if not lazy:
            await backend.connect()
        return backend

    yield open_one
    for backend in opened:
        await backend.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may freeze and kill."""
    with running(RedisServer(tmp_path / "own", persistent=True)) as server:
        yield server


async def unavailable(call: Awaitable[object], *, within_s: float = 1.5) -> str:
    begin = time.monotonic()
    with pytest.raises(StoreUnavailableError) as caught:
        await call
    assert time.monotonic() - begin < within_s
    return str(caught.value)


async def accepting(backend: RedisBackend) -> str:
    reply = await backend.accept(
        store_id=ID, owner="acme", expected_pin=b"sealed pin", pin=b"new", audit=row("owner.accepted")
    )
    return reply.verdict


async def eventually(call: Callable[[], Awaitable[object]], *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            await call()
        except StoreUnavailableError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        else:
            return


# -- the URL -------------------------------------------------------------------------------------


def test_urls() -> None:
    plain = parse_redis_url("redis://cache")
    assert (plain.kind, plain.addresses, plain.database) == ("single", (("cache", 6379),), 0)
    assert (plain.prefix, plain.wait, plain.tls, plain.password) == ("0", 0, None, None)
    full = parse_redis_url(
        "rediss://us%40er:p%2Fw%23@[::1]:7000/3?prefix=a.b&wait=2&ssl_ca_certs=/ca.pem&ssl_check_hostname=false"
    )
    assert full.addresses == (("::1", 7000),)
    assert (full.database, full.username, full.password, full.prefix, full.wait) == (
        3,
        "us@er",
        Secret("p/w#"),
        "a.b",
        2,
    )
    assert full.tls == {"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False}
    sentinel = parse_redis_url("redis+sentinel://:pw@s1,s2:26380/main/2?sentinel_password=other")
    assert sentinel.addresses == (("s1", 26379), ("s2", 26380))
    assert (sentinel.service, sentinel.database, sentinel.wait) == ("main", 2, 1)
    assert (sentinel.password, sentinel.sentinel_password) == (Secret("pw"), Secret("other"))
    cluster = parse_redis_url("rediss+cluster://n1:1,n2:2?wait=0")
    assert (cluster.kind, cluster.wait, cluster.tls) == ("cluster", 0, {"ssl_check_hostname": True})


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "http://:hunter2@host",
        "redis://",
        "redis://:hunter2@",
        "redis://user@host",
        "redis://:hunter2@host:0",
        "redis://:hunter2@host:65536",
        "redis://:hunter2@host:hunter2",
        "redis://:hunter2@host:6379:1",
        "redis://:hunter2@[::1",
        "redis://:hun#ter2@host",
        "redis://:hunter2/x@host",
        "redis://:hun@ter2@ho st",
        "redis://:hunter2@a,b",
        "redis://:hunter2@host/hunter2",
        "redis://:hunter2@host?hunter2=1",
        "redis://:hunter2@host?prefix=hunter2{}",
        "redis://:hunter2@host?prefix=",
        "redis://:hunter2@host?wait=hunter2",
        "redis://:hunter2@host?wait=1&wait=2",
        "redis://:hunter2@host?wait",
        "redis://:hunter2@host?ssl_ca_certs=/ca",
        "rediss://:hunter2@host?ssl_cert_reqs=hunter2",
        "rediss://:hunter2@host?ssl_check_hostname=hunter2",
        "redis+sentinel://:hunter2@host",
        "redis+sentinel://:hunter2@host/main/hunter2",
        "redis+cluster://:hunter2@host/1",
        "redis://:hunter2@host\uff1a80",
    ],
)
def test_wrong_urls_are_named_without_being_shown(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_redis_url(url)
    (problem,) = caught.value.problems
    assert problem.startswith("BROKER_STORE_URL ")
    assert "\n" not in problem
    assert "hunter2" not in problem
    assert "ter2" not in problem


def test_a_target_does_not_show_its_password() -> None:
    target = parse_redis_url("redis+sentinel://u:hunter2@host/main?sentinel_password=hunter2")
    assert "hunter2" not in repr(target)
    assert "hunter2" not in target.shown


# -- lost data -----------------------------------------------------------------------------------


async def test_lost_data_shows_in_every_read_and_stops_every_write(
    redis_server: RedisServer, connect: Connect
) -> None:
    prefix = uuid.uuid4().hex
    tag = f"{{ghtb:{prefix}}}:"
    backend = await connect(f"{redis_server.url}?prefix={prefix}")
    losses: tuple[tuple[str, ...], ...] = (
        ("FLUSHALL",),
        ("HDEL", f"{tag}S", "id"),
        ("DEL", f"{tag}S"),
        ("DEL", f"{tag}K"),
        ("HDEL", f"{tag}K", "!"),
    )
    for loss in losses:
        redis_server.ask("FLUSHALL")
        await started(backend)
        await mint(backend)
        assert (await backend.acquire(acquiring(expected_token=b"sealed token"))).verdict == "lead"
        await backend.lease(ID, "o:acme", "nonce-1")
        redis_server.ask(*loss)
        view = await backend.read(Want(keys=("key-1",)))
        assert None in {view.store_id, view.keys_id}
        assert (await backend.acquire(acquiring())).verdict == "lost"
        assert await backend.commit(committing()) == "lost"
        assert (
            await backend.hand(store_id=ID, epoch=view.epoch, sha=SHA, key_id="a", audit=row("token.issued"))
            == "lost"
        )
        assert (await backend.write_key(keying())).verdict == "lost"
        assert await backend.put_owner(owning()) == "lost"
        assert (await backend.end(ending(reach="all"))).verdict == "lost"
        assert await backend.settle(ID, [(SHA, "", None)]) == 0
        assert await backend.hook(ID, body_sha="b", guid="g", blob=b"x") == "lost"
        assert await accepting(backend) == "lost"
        assert not await backend.append(ID, [row()])
        assert not (await backend.lease(ID, "job:x", "n"))[0]
        assert not await backend.add_wraps(ID, {"dk:1:ee": b"x"})
        if loss != ("FLUSHALL",):
            # Something of ours is left: no process may take this for a fresh store.
            assert not await backend.initialise({"id": b"new"})


async def test_everything_lies_in_one_slot_and_live_tokens_outlast_their_expiry(
    redis_server: RedisServer, connect: Connect
) -> None:
    redis_server.ask("FLUSHALL")
    backend = await connect(f"{redis_server.url}?prefix=only")
    await started(backend)
    await mint(backend)
    await backend.hand(store_id=ID, epoch=7, sha=SHA, key_id="a", audit=row("token.issued"))
    await backend.write_key(keying(purge_at=time.time() + 1000))
    await backend.touch({"key-1": 1})
    await backend.lease(ID, "o:acme", "nonce-1")
    await backend.put_owner(owning())
    await backend.pause("app", 10)
    await backend.gate(SCOPE, 10)
    await backend.take("key-1:rate", chunk=1, limit=1)
    await backend.end(ending(marks=("m:o:acme",), reach="all"))
    await backend.hook(ID, body_sha="b", guid="g", blob=b"x")
    names = redis_server.ask("KEYS", "*").split(b"\r\n")[2::2]
    names = [name for name in names if name]
    tag = b"{ghtb:only}:"
    assert all(name.startswith(tag) for name in names)
    kinds = {name.removeprefix(tag).split(b":")[0].decode() for name in names}
    assert kinds == {
        "S",
        "K",
        "KI",
        "KP",
        "U",
        "O",
        "N",
        "I",
        "T",
        "R",
        "RT",
        "OT",
        "KT",
        "L",
        "P",
        "G",
        "B",
        "A",
        "OI",
        "X",
        "XE",
        "XS",
        "W",
        "WD",
        "WQ",
    }
    for name in (f"R:{SHA}", "RT", "OT:acme", "KT:a"):
        left_ms = int(redis_server.ask("PTTL", tag + name.encode())[1:])
        assert 3600_000 < left_ms <= 4200_000
    assert 0 < int(redis_server.ask("PTTL", tag + f"T:{SCOPE}".encode())[1:]) <= 3600_000
    for name in ("W:b", "WD:g"):
        left_ms = int(redis_server.ask("PTTL", tag + name.encode())[1:])
        assert 7.9 * 86400_000 < left_ms <= 8 * 86400_000
    immortal = {name for name in names if redis_server.ask("PTTL", name).startswith(b":-1")}
    expected = "S K KI KP U N I A OI X XE XS WQ"
    assert immortal == {tag + name.encode() for name in expected.split()}


async def test_the_installation_index_lives_as_long_as_its_owners(
    redis_server: RedisServer, connect: Connect
) -> None:
    prefix = uuid.uuid4().hex
    backend = await connect(f"{redis_server.url}?prefix={prefix}")
    await started(backend)
    for number in range(500):
        await backend.lease(ID, f"o:owner-{number}", "nonce-1")
        done = await backend.put_owner(
            owning(owner=f"owner-{number}", lease=f"o:owner-{number}", installation_id=number)
        )
        assert done == "ok"
    for number in range(0, 500, 2):
        redis_server.ask("DEL", f"{{ghtb:{prefix}}}:O:owner-{number}")
    # Expired owners are nobody's, swept or not; pages pass over them.
    assert await backend.owner_of(2) is None
    rows, cursor = await backend.owners(cursor=None, limit=100)
    assert (len(rows), cursor) == (100, rows[-1].owner)
    assert [each.owner for each in rows] == sorted(f"owner-{number}" for number in range(1, 500, 2))[:100]
    # One that a broker wrote which kept no list of owners yet.
    redis_server.ask("ZREM", f"{{ghtb:{prefix}}}:OI", "owner-3 3")
    # One whose installation went to another name.
    await backend.lease(ID, "o:renamed", "nonce-1")
    assert await backend.put_owner(owning(owner="renamed", lease="o:renamed", installation_id=5)) == "ok"
    redis_server.ask("DEL", f"{{ghtb:{prefix}}}:O:owner-5")
    await backend.sweep()
    assert redis_server.ask("HLEN", f"{{ghtb:{prefix}}}:I") == b":250\r\n"
    assert redis_server.ask("ZCARD", f"{{ghtb:{prefix}}}:OI") == b":250\r\n"
    assert redis_server.ask("HGET", f"{{ghtb:{prefix}}}:I", "3") == b"$7\r\nowner-3\r\n"
    assert await backend.owner_of(5) == "renamed"
    assert "owner-3" in [each.owner for each in (await backend.owners(cursor=None, limit=500))[0]]


async def test_an_outbox_entry_whose_token_is_forgotten_says_so_and_is_swept(
    redis_server: RedisServer, connect: Connect
) -> None:
    prefix = uuid.uuid4().hex
    backend = await connect(f"{redis_server.url}?prefix={prefix}")
    await started(backend)
    await mint_some(backend, *(f"{number:03}" for number in range(500)))
    await backend.end(ending(reach="all"))
    await backend.end(ending(reach="t:sha-000", only="acme/app"))
    for number in range(0, 500, 2):
        redis_server.ask("DEL", f"{{ghtb:{prefix}}}:R:sha-{number:03}")
    (gone,) = await backend.outbox(["sha-002"], limit=9)
    assert (gone.blob, gone.owner, gone.scope, gone.note) == (None, "", "", NOTE)
    assert abs(gone.expires_at - time.time() - 3600) < 30
    # It may be settled as revoked all the same, and does not come back to life by that.
    assert await backend.settle(ID, [("sha-002", "", row("token.revoked"))]) == 1
    assert redis_server.ask("EXISTS", f"{{ghtb:{prefix}}}:R:sha-002") == b":0\r\n"
    await backend.sweep()
    left = await backend.outbox(None, limit=1000)
    assert sorted(entry.sha for entry in left) == [f"sha-{number:03}" for number in range(1, 500, 2)]
    for name in ("X", "XE", "XS"):
        count = "HLEN" if name == "X" else "ZCARD"
        assert redis_server.ask(count, f"{{ghtb:{prefix}}}:{name}") == b":250\r\n"


async def test_a_mark_that_is_set_again_while_the_sweep_looks_stays(
    redis_server: RedisServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{redis_server.url}?prefix={uuid.uuid4().hex}"
    one, two = await connect(url), await connect(url)
    await started(one, **{"m:all": b"3:1700000000", "m:o:acme": b"3:1700000000"})
    ask = one._list

    async def slow(*command: Any) -> Any:
        reply = await ask(*command)
        if command[0] == "HSCAN" and command[1].endswith(":S"):
            await two.end(ending(marks=("m:all",)))
        return reply

    monkeypatch.setattr(one, "_list", slow)
    await one.sweep()
    state = await two.load()
    assert state.fields["m:all"].startswith(b"8:")
    assert "m:o:acme" not in state.fields


async def test_an_accepted_owner_leaves_the_indexes(redis_server: RedisServer, connect: Connect) -> None:
    prefix = uuid.uuid4().hex
    backend = await connect(f"{redis_server.url}?prefix={prefix}")
    await started(backend)
    await backend.lease(ID, "o:acme", "nonce-1")
    assert await backend.put_owner(owning()) == "ok"
    assert await accepting(backend) == "ok"
    for name in ("O:acme", "I", "OI"):
        assert redis_server.ask("EXISTS", f"{{ghtb:{prefix}}}:{name}") == b":0\r\n"


async def test_a_revoked_token_leaves_the_indexes(redis_server: RedisServer, connect: Connect) -> None:
    prefix = uuid.uuid4().hex
    backend = await connect(f"{redis_server.url}?prefix={prefix}")
    await started(backend)
    await mint(backend)
    await backend.end(ending(reach="all"))
    await backend.settle(ID, [(SHA, "", row("token.revoked"))])
    tag = f"{{ghtb:{prefix}}}:"
    for name in ("RT", "OT:acme", "X", "XE", "XS"):
        assert redis_server.ask("EXISTS", tag + name) == b":0\r\n"
    assert redis_server.ask("HGET", f"{tag}R:{SHA}", "x") == b"$7\r\nrevoked\r\n"


@pytest.mark.parametrize(("field", "value"), [("epoch", "x"), ("b:w:acme", "many")])
async def test_an_end_that_cannot_count_does_nothing(
    redis_server: RedisServer, connect: Connect, field: str, value: str
) -> None:
    prefix = uuid.uuid4().hex
    backend = await connect(f"{redis_server.url}?prefix={prefix}")
    await started(backend)
    await mint(backend)
    redis_server.ask("HSET", f"{{ghtb:{prefix}}}:S", field, value)
    before = await backend.load()
    blocks = {"b:r:acme/app": b"sealed"}
    assert "is not a number" in await unavailable(
        backend.end(ending(blocks=blocks, wide="b:w:acme", reach="all"))
    )
    assert await backend.load() == before
    assert await backend.outbox(None, limit=9) == ()
    assert len((await backend.audit(AuditWant())).rows) == 1


async def test_brokers_with_other_prefixes_do_not_meet(redis_server: RedisServer, connect: Connect) -> None:
    one = await connect(f"{redis_server.url}?prefix={uuid.uuid4().hex}")
    two = await connect(f"{redis_server.url}?prefix={uuid.uuid4().hex}")
    await started(one)
    assert (await two.load()).fields == {}
    assert await two.initialise({"id": b"other"})
    assert (await one.read(Want())).store_id == ID


async def test_wrong_types_are_an_unavailable_store(redis_server: RedisServer, connect: Connect) -> None:
    prefix = uuid.uuid4().hex
    backend = await connect(f"{redis_server.url}?prefix={prefix}")
    redis_server.ask("SET", f"{{ghtb:{prefix}}}:S", "text")
    assert "WRONGTYPE" in await unavailable(backend.read(Want()))
    assert "WRONGTYPE" in await unavailable(backend.write_key(keying()))
    await unavailable(backend.load())


@pytest.mark.parametrize(("field", "value"), [("epoch", "x"), ("gh_offset", "x"), ("gh_offset", "nan")])
async def test_a_state_that_is_no_number_is_an_unavailable_store(
    redis_server: RedisServer, connect: Connect, field: str, value: str
) -> None:
    prefix = uuid.uuid4().hex
    backend = await connect(f"{redis_server.url}?prefix={prefix}")
    await started(backend)
    redis_server.ask("HSET", f"{{ghtb:{prefix}}}:S", field, value)
    assert field in await unavailable(backend.read(Want()))


async def test_cursors_that_nobody_gave(redis_server: RedisServer, connect: Connect) -> None:
    backend = await connect(f"{redis_server.url}?prefix={uuid.uuid4().hex}")
    for cursor in ("", "x", "1", "1-1\n", "-", "+", "(1-1"):
        with pytest.raises(InvalidRequestError):
            await backend.audit(AuditWant(cursor=cursor))
    for cursor in ("", "x", "1\n", "inf", "-1"):
        with pytest.raises(InvalidRequestError):
            await backend.list_keys(cursor=cursor, limit=1)


async def test_forgotten_scripts_are_sent_again(redis_server: RedisServer, connect: Connect) -> None:
    backend = await connect(f"{redis_server.url}?prefix={uuid.uuid4().hex}")
    await started(backend)
    redis_server.ask("SCRIPT", "FLUSH")
    done = await asyncio.gather(
        *(backend.take("a", chunk=1, limit=100) for _ in range(10)),
        *(backend.write_key(keying(key_id=f"k{number}")) for number in range(10)),
    )
    assert [reply.verdict for reply in done[10:]] == ["ok"] * 10
    assert [granted for granted, _ in done[:10]] == [1] * 10


# -- down, frozen, back --------------------------------------------------------------------------


async def test_down_at_start_then_up(tmp_path: Path, connect: Connect) -> None:
    server = RedisServer(tmp_path / "late")
    backend = await connect(server.url, lazy=True)
    await unavailable(backend.connect(), within_s=0.5)
    await unavailable(backend.read(Want()), within_s=0.5)
    with running(server):
        await eventually(lambda: started(backend))
        await eventually(lambda: backend.read(Want()))


async def test_killed_and_restarted(own_server: RedisServer, connect: Connect) -> None:
    backend = await connect(own_server.url)
    await started(backend)
    await backend.write_key(keying())
    own_server.kill()
    for _ in range(3):
        await unavailable(backend.read(Want()))
        await unavailable(backend.write_key(keying(key_id="key-2")))
        await unavailable(backend.load())
    own_server.start()
    await eventually(lambda: backend.read(Want()))
    assert (await backend.read(Want(keys=("key-1",)))).keys["key-1"] == b"sealed key"
    await eventually(lambda: backend.lease(ID, "job:a", "n"))
    await eventually(backend.load)


async def test_a_restart_between_two_calls_goes_unnoticed(own_server: RedisServer, connect: Connect) -> None:
    """A connection that ended while idle is seen before anything is sent: safe to repeat, writes too."""
    backend = await connect(own_server.url)
    await started(backend)
    for _ in range(3):
        own_server.kill()
        own_server.start()
        await asyncio.sleep(0.05)
        assert (await backend.read(Want())).store_id == ID
        assert (await backend.take("a", chunk=1, limit=10_000))[0] == 1
        assert (await backend.load()).keys_id == ID
        own_server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.sleep(0.05)
        assert (await backend.take("a", chunk=1, limit=10_000))[0] == 1
        assert (await backend.read(Want())).store_id == ID


async def test_a_frozen_server_is_bounded_and_its_late_replies_reach_nobody(
    own_server: RedisServer, connect: Connect
) -> None:
    backend = await connect(own_server.url)
    await started(backend)
    for name in ("a", "b"):
        await backend.write_key(keying(key_id=name, blob=name.encode()))
    own_server.pause()
    try:
        calls: list[Awaitable[object]] = [
            *(backend.read(Want(keys=("a",))) for _ in range(50)),
            *(backend.take("x", chunk=1, limit=1000) for _ in range(50)),
            backend.acquire(acquiring()),
        ]
        lists = asyncio.create_task(unavailable(backend.load(), within_s=4))
        await asyncio.gather(*(unavailable(call) for call in calls))
        await asyncio.gather(*(unavailable(backend.read(Want(keys=("a",)))) for _ in range(50)))
        await unavailable(backend.connect())
        await lists
    finally:
        own_server.resume()
    await eventually(lambda: backend.read(Want()))
    for _ in range(20):
        assert dict((await backend.read(Want(keys=("b",)))).keys) == {"b": b"b"}
        assert dict((await backend.read(Want(keys=("a",)))).keys) == {"a": b"a"}
    await eventually(lambda: backend.gate("g", 10))


async def test_a_caller_that_queues_behind_a_frozen_batch_waits_no_longer(
    own_server: RedisServer, connect: Connect
) -> None:
    backend = await connect(own_server.url, deadline_s=0.5)
    own_server.pause()
    try:
        first = asyncio.create_task(unavailable(backend.read(Want()), within_s=0.7))
        for _ in range(4):
            await asyncio.sleep(0.1)
            assert not first.done()
        await unavailable(backend.read(Want()), within_s=0.7)
        await first
    finally:
        own_server.resume()
    await eventually(lambda: backend.read(Want()))


class FakeRedis:
    """Says that it is a primary; what else it does is ``react``'s."""

    def __init__(self, react: Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self.accepted = 0
        self.port = 0
        self._react = react

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["FakeRedis"]:
        writers: list[asyncio.StreamWriter] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.accepted += 1
            writers.append(writer)
            with contextlib.suppress(OSError):
                while data := await reader.read(1 << 16):
                    if b"ROLE" in data:
                        writer.write(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n")
                    else:
                        await self._react(data, writer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in writers:
                writer.close()
            await server.wait_closed()
            await asyncio.sleep(0.05)


async def test_a_write_whose_reply_is_lost_is_not_sent_again_a_read_once(connect: Connect) -> None:
    sent: list[bytes] = []

    async def cut(data: bytes, writer: asyncio.StreamWriter) -> None:
        sent.append(data)
        writer.close()

    async with FakeRedis(cut).serving() as fake:
        backend = await connect(f"redis://127.0.0.1:{fake.port}", lazy=True)
        await unavailable(backend.write_key(keying()))
        assert len(sent) == 1
        await unavailable(backend.read(Want()))
        assert len(sent) == 3
        await backend.close()


async def test_nonsense_on_the_line(connect: Connect) -> None:
    async def babble(data: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with FakeRedis(babble).serving() as fake:
        backend = await connect(f"redis://127.0.0.1:{fake.port}", lazy=True)
        await unavailable(backend.read(Want()))
        await unavailable(backend.gate("g", 1))
        await backend.close()


async def test_what_was_answered_stays_answered_when_the_rest_fails(
    own_server: RedisServer, connect: Connect
) -> None:
    """One unit of a batch is refused for ever, its neighbours were done."""
    backend = await connect(own_server.url)
    own_server.ask("ACL", "SETUSER", "default", "-incr")
    good, bad = Unit((("SET", "a", "1"),)), Unit((("INCR", "b"),))
    until = asyncio.get_running_loop().time() + 1
    first, second, third = await backend._write_link.talk([good, bad, good], until, repeatable=False)
    assert (first, third) == (b"OK", b"OK")
    assert isinstance(second, StoreUnavailableError)


async def test_a_dead_redis_costs_few_attempts(connect: Connect, hanging_up: FakeRedis) -> None:
    backend = await connect(f"redis://127.0.0.1:{hanging_up.port}", lazy=True)
    begin = time.monotonic()
    while time.monotonic() - begin < 0.55:
        verbs = [backend.read(Want()) for _ in range(20)] + [backend.gate(f"g{n}", 1) for n in range(20)]
        results = await asyncio.gather(*verbs, return_exceptions=True)
        assert all(isinstance(result, StoreUnavailableError) for result in results)
        await asyncio.sleep(0.001)
    assert 3 <= hanging_up.accepted <= 8


async def _silent(data: bytes, writer: asyncio.StreamWriter) -> None:
    pass


@pytest.fixture
async def hanging_up() -> AsyncIterator[FakeRedis]:
    """Accepts, and hangs up at once."""
    counter = FakeRedis(_silent)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        counter.accepted += 1
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    counter.port = server.sockets[0].getsockname()[1]
    yield counter
    server.close()
    await server.wait_closed()


async def test_cancelling_a_conversation_closes_its_connection(redis_server: RedisServer) -> None:
    """The link itself: what a Batcher's deadline does to it."""
    target = parse_redis_url(redis_server.url)
    link = Link(Primary(target, connect_timeout_s=1.0))
    try:
        for number in range(50):
            units = [Unit((("ECHO", f"{number}"),)), Unit((("DEBUG", "SLEEP", "0"),))]
            task = asyncio.create_task(
                link.talk(units, asyncio.get_running_loop().time() + 1, repeatable=True)
            )
            for _ in range(number % 7):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            (reply,) = await link.talk(
                [Unit((("ECHO", f"after {number}"),))], asyncio.get_running_loop().time() + 1, repeatable=True
            )
            assert reply == f"after {number}".encode()
    finally:
        await link.close()


# -- a node that takes no writes -----------------------------------------------------------------


@pytest.fixture
def quick_beat(monkeypatch: pytest.MonkeyPatch) -> float:
    """Beats 20 times as often; returns how long one counts."""
    monkeypatch.setattr("broker.store.redis.BEAT_EVERY_S", 0.05)
    monkeypatch.setattr("broker.store.redis.BEAT_LIFE_S", 0.6)
    return 0.6


async def reads_until_refused(backend: RedisBackend, *, seconds: float = 5) -> tuple[str, int]:
    """Read on; return the refusal, and how many reads were answered before it."""
    answered, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            await backend.read(Want())
        except StoreUnavailableError as error:
            return str(error), answered
        answered += 1
        await asyncio.sleep(0.01)
    raise AssertionError(f"still read after {seconds} s")


async def test_a_primary_without_its_replicas_is_not_read_for_long(
    own_server: RedisServer, connect: Connect, quick_beat: float
) -> None:
    """Cut off, it may have been replaced: what was revoked since is not known to it."""
    backend = await connect(own_server.url)
    await started(backend)
    own_server.ask("CONFIG", "SET", "min-replicas-to-write", "1")
    refused, answered = await reads_until_refused(backend)
    assert "NOREPLICAS" in refused
    assert answered >= 3  # a replica that restarts is no outage
    # A process that starts now, and one that reconnects, has no credit.
    late = await connect(own_server.url, lazy=True)
    assert "NOREPLICAS" in await unavailable(late.read(Want()))
    own_server.ask("CONFIG", "SET", "min-replicas-to-write", "0")
    await eventually(lambda: backend.read(Want()))
    own_server.ask("CONFIG", "SET", "min-replicas-to-write", "1")
    own_server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await asyncio.sleep(0.05)
    assert "NOREPLICAS" in await unavailable(backend.read(Want()))


async def test_a_full_redis_is_read_and_says_that_it_takes_nothing(
    own_server: RedisServer, connect: Connect, quick_beat: float
) -> None:
    backend = await connect(own_server.url)
    await started(backend)
    own_server.ask("CONFIG", "SET", "maxmemory", "1")
    for _ in range(20):
        assert (await backend.read(Want())).store_id == ID
        await asyncio.sleep(0.05)
    assert "OutOfMemory" in await unavailable(backend.probe())
    assert "OutOfMemory" in await unavailable(backend.write_key(keying()))
    assert "OutOfMemory" in await unavailable(backend.end(ending(reach="all")))
    own_server.ask("CONFIG", "SET", "maxmemory", "0")
    await backend.probe()
    assert (await backend.read(Want(keys=("key-1",)))).keys == {}


async def test_a_redis_that_cannot_save_is_read_while_its_replicas_are_there(
    tmp_path: Path, connect: Connect, quick_beat: float
) -> None:
    with running(RedisServer(tmp_path / "saving", options=("--save", "3600 100000"))) as server:
        backend = await connect(server.url)
        await started(backend)
        shutil.rmtree(tmp_path / "saving")
        server.ask("BGSAVE")
        until(lambda: b"rdb_last_bgsave_status:err" in server.ask("INFO", "persistence"))
        assert "MISCONF" in await unavailable(backend.probe())
        for _ in range(20):
            assert (await backend.read(Want())).store_id == ID
            await asyncio.sleep(0.05)
        # Without a replica in touch it may be a primary no more.
        server.ask("CONFIG", "SET", "min-replicas-to-write", "1")
        assert "MISCONF" in (await reads_until_refused(backend))[0]


async def test_a_primary_that_was_demoted_is_not_read_for_long(
    tmp_path: Path, connect: Connect, quick_beat: float
) -> None:
    """Under an open connection, with nobody who writes."""
    with (
        running(RedisServer(tmp_path / "primary")) as primary,
        running(RedisServer(tmp_path / "replica")) as other,
    ):
        backend = await connect(primary.url)
        await started(backend)
        primary.ask("REPLICAOF", "127.0.0.1", str(other.port))
        refused, _ = await reads_until_refused(backend)
        assert "replica" in refused
        primary.ask("REPLICAOF", "NO", "ONE")
        await eventually(lambda: backend.read(Want()))


async def test_when_one_connection_finds_another_primary_all_go_there(
    tmp_path: Path, connect: Connect
) -> None:
    """The old one still answers, and still believes that it is a primary."""
    with running(RedisServer(tmp_path / "one")) as one, running(RedisServer(tmp_path / "two")) as two:
        primary = one.port

        async def sentinel(data: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(primary)), primary))

        async with FakeRedis(sentinel).serving() as fake:
            backend = await connect(f"redis+sentinel://127.0.0.1:{fake.port}/main?wait=0")
            await started(backend)
            await started(await connect(two.url), id=b"store-of-two")
            assert (await backend.read(Want())).store_id == ID
            primary = two.port
            await backend._write_link.close()
            backend._write_link._primary.forget()  # as when a conversation breaks
            assert await backend.gate("g", 1)
            assert (await backend.read(Want())).store_id == b"store-of-two"
            await backend.close()


# -- who may connect -----------------------------------------------------------------------------


async def test_passwords(tmp_path: Path, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with running(RedisServer(tmp_path / "secured", password="correct-horse")) as server:
        await started(await connect(server.url))
        for user in ("", ":wrong-horse@", "nobody:wrong-horse@"):
            backend = await connect(f"redis://{user}127.0.0.1:{server.port}", lazy=True)
            message = await unavailable(backend.read(Want()))
            assert "horse" not in message
            assert str(server.port) in message
        server.kill()
    assert "connected to Redis" in caplog.text
    assert "no connection to Redis" in caplog.text
    assert "horse" not in caplog.text


async def test_tls(redis_server: RedisServer, tmp_path: Path, connect: Connect) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    async with proxy(redis_server.port, tls=context) as port:
        options = f"prefix={uuid.uuid4().hex}&ssl_ca_certs={cert}"
        backend = await connect(f"rediss://127.0.0.1:{port}?{options}")
        await started(backend)
        assert (await backend.read(Want())).store_id == ID
        await backend.close()
        unknown = await connect(f"rediss://127.0.0.1:{port}", lazy=True)
        await unavailable(unknown.read(Want()))
        # A name that the certificate does not have.
        other_name = await connect(f"rediss://localhost:{port}?{options}", lazy=True)
        await unavailable(other_name.read(Want()))
        missing = await connect(f"rediss://127.0.0.1:{port}?ssl_ca_certs=/nonexistent", lazy=True)
        await unavailable(missing.read(Want()))
        plain = await connect(f"redis://127.0.0.1:{port}", lazy=True, deadline_s=0.5)
        await unavailable(plain.read(Want()))


# -- replicas, Sentinel, Cluster -----------------------------------------------------------------


async def test_nothing_is_read_from_a_replica(tmp_path: Path, connect: Connect) -> None:
    with (
        running(RedisServer(tmp_path / "primary")) as primary,
        running(RedisServer(tmp_path / "replica", replica_of=primary.port)) as replica,
    ):
        await started(await connect(primary.url))
        backend = await connect(replica.url, lazy=True)
        assert "replica" in await unavailable(backend.read(Want()))
        # Promoted: fine. Demoted under open connections: a write tells, and no read goes there any more.
        replica.ask("REPLICAOF", "NO", "ONE")
        await eventually(backend.connect)
        replica.ask("REPLICAOF", "127.0.0.1", str(primary.port))
        await unavailable(backend.gate("g", 1))
        await unavailable(backend.read(Want()))


async def test_a_decision_counts_when_replicas_have_it(tmp_path: Path, connect: Connect) -> None:
    with (
        running(RedisServer(tmp_path / "primary")) as primary,
        running(RedisServer(tmp_path / "replica", replica_of=primary.port)) as replica,
    ):
        until(lambda: b"master_link_status:up" in replica.ask("INFO", "replication"))
        backend = await connect(f"{primary.url}?wait=1")
        await started(backend)
        began = (await backend.read(Want())).epoch
        assert (await backend.write_key(keying())).verdict == "ok"
        replica.kill()
        assert "replicas must confirm" in await unavailable(backend.write_key(keying(key_id="key-2")))
        # What is no decision does not wait for them.
        assert await backend.gate("g", 10)
        assert (await backend.acquire(acquiring())).verdict == "lead"
        assert "replicas must confirm" in await unavailable(backend.commit(committing()))
        epoch = (await backend.read(Want())).epoch
        for decision in (
            # Once for the hand-out, and once for whoever asks again because of that answer.
            backend.hand(store_id=ID, epoch=epoch, sha=SHA, key_id="key-1", audit=row("token.issued")),
            backend.hand(store_id=ID, epoch=epoch, sha=SHA, key_id="key-1", audit=row("token.issued")),
            backend.end(ending(reach="all")),
            backend.write_key(keying(expected=b"sealed key", kill=b"note")),
            backend.settle(ID, [(SHA, "", row("token.revoked"))]),
            backend.hook(ID, body_sha="b", guid="g", blob=b"x"),
        ):
            assert "replicas must confirm" in await unavailable(decision, within_s=2.5)
        assert len(await backend.hooks(limit=9)) == 1
        assert len((await backend.audit(AuditWant(event="token.issued"))).rows) == 1
        assert epoch_of((await backend.read(Want(fields=("m:all",)))).fields["m:all"]) > began
        # The write stands and may be repeated.
        assert (await backend.read(Want(keys=("key-2",)))).keys["key-2"] == b"sealed key"


async def test_sentinel_finds_the_primary_again_after_a_failover(tmp_path: Path, connect: Connect) -> None:
    with (
        running(RedisServer(tmp_path / "one", password="pw")) as one,
        running(RedisServer(tmp_path / "two", password="pw", replica_of=one.port)) as two,
    ):
        sentinel = RedisServer(tmp_path / "sentinel", sentinel_of=("main", one.port))
        with running(sentinel):
            sentinel.ask("SENTINEL", "SET", "main", "auth-pass", "pw")
            dead = RedisServer(tmp_path / "dead").port
            url = f"redis+sentinel://:pw@127.0.0.1:{dead},127.0.0.1:{sentinel.port}/main?wait=0"
            backend = await connect(url)
            await started(backend)
            assert (await backend.read(Want())).store_id == ID

            # NOGOODSLAVE until the Sentinel has heard of the replica and of its health.
            until(lambda: sentinel.ask("SENTINEL", "FAILOVER", "main").startswith(b"+OK"), seconds=20)

            async def follows() -> None:
                await backend.gate(uuid.uuid4().hex, 1)
                if b"role:master" not in two.ask("INFO", "replication"):
                    raise StoreUnavailableError("not yet")
                one.kill()
                await backend.gate(uuid.uuid4().hex, 1)

            await eventually(follows, seconds=30)
            await eventually(lambda: backend.read(Want()))
            assert (await backend.read(Want())).store_id == ID
            unknown = await connect(f"redis+sentinel://127.0.0.1:{sentinel.port}/other", lazy=True)
            assert "do not know" in await unavailable(unknown.read(Want()))


async def test_a_slot_that_moves_is_followed(tmp_path: Path, connect: Connect) -> None:
    """MOVED, ASK and TRYAGAIN, with a real migration of our slot between two nodes."""
    with running(RedisServer(tmp_path / "one", cluster=True)) as one:
        two = RedisServer(tmp_path / "two", cluster=True)
        slot = str(Primary(parse_redis_url(one.url), connect_timeout_s=1)._slot)
        with running(two, form_cluster=False):
            two.ask("CLUSTER", "MEET", "127.0.0.1", str(one.port), str(one.bus_port))
            backend = await connect(f"{one.url}?wait=0")
            await started(backend)
            await backend.write_key(keying())
            until(lambda: b"cluster_state:ok" in two.ask("CLUSTER", "INFO"))
            ids = {server: server.ask("CLUSTER", "MYID").split(b"\r\n")[1] for server in (one, two)}
            two.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[one])
            one.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[two])
            # Some keys are here, some there: bounded, never a wrong answer.
            await unavailable(backend.read(Want(strings=("T:none",))))
            names = one.ask("CLUSTER", "GETKEYSINSLOT", slot, "100").split(b"\r\n")[2::2]
            one.ask(
                "MIGRATE",
                "127.0.0.1",
                str(two.port),
                "",
                "0",
                "1000",
                "KEYS",
                *(name for name in names if name),
            )
            # All there, but the slot is not theirs yet: ASK. What touches names that do not exist (yet)
            # has to wait: neither node can know that the other has none.
            assert (await backend.read(Want(keys=("key-1",)))).keys["key-1"] == b"sealed key"
            assert (await backend.take("a", chunk=1, limit=2))[0] == 1
            waits = asyncio.create_task(backend.acquire(acquiring()))
            await asyncio.sleep(0.2)
            assert not waits.done()
            for server in (two, one):
                server.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[two])
            assert (await waits).verdict == "lead"
            # Theirs: MOVED, once.
            for _ in range(3):
                assert (await backend.read(Want())).store_id == ID
                assert (await backend.acquire(acquiring())).verdict == "wait"
            assert (await backend.load()).keys_id == ID
            # A fresh process finds it through the other node.
            assert (await (await connect(f"{one.url}?wait=0")).read(Want())).store_id == ID


# -- warnings ------------------------------------------------------------------------------------


async def test_warnings(own_server: RedisServer, connect: Connect) -> None:
    backend = await connect(own_server.url)
    assert await backend.warnings() == []
    own_server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    own_server.ask("CONFIG", "SET", "appendonly", "no")
    evicts, forgets = await backend.warnings()
    assert "allkeys-lru" in evicts
    assert "appendonly" in forgets
    own_server.ask("CONFIG", "SET", "save", "60 1")
    assert len(await backend.warnings()) == 1
    # Where CONFIG is forbidden, INFO still tells about eviction; where that is too, nothing is said.
    own_server.ask("ACL", "SETUSER", "tenant", "on", ">pw", "~*", "+@all", "-config", "-role")
    tenant = await connect(f"redis://tenant:pw@127.0.0.1:{own_server.port}")
    assert len(await tenant.warnings()) == 1
    own_server.ask("ACL", "SETUSER", "tenant", "-info")
    assert await tenant.warnings() == []
    assert (await tenant.read(Want())).store_id is None


# -- Batcher -------------------------------------------------------------------------------------


async def test_a_batch_is_a_loop_turn_and_what_came_while_one_ran() -> None:
    batches: list[list[int]] = []

    async def run(items: Sequence[int], until: float) -> Sequence[int]:
        batches.append(list(items))
        await asyncio.sleep(0.01)
        return [item * 2 for item in items]

    batcher = Batcher(run, deadline_s=1.0, max_batch=4)

    async def one(item: int) -> int:
        return await batcher.submit(item)

    assert await asyncio.gather(*(one(item) for item in range(3))) == [0, 2, 4]
    first = asyncio.create_task(one(10))
    await asyncio.sleep(0.002)
    gone = asyncio.create_task(one(99))
    await asyncio.sleep(0)
    gone.cancel()
    assert await asyncio.gather(first, *(one(item) for item in range(20, 26))) == [20, *range(40, 52, 2)]
    assert batches == [[0, 1, 2], [10], [20, 21, 22, 23], [24, 25]]
    await batcher.close()


async def test_errors_of_a_batch_go_to_those_who_met_them() -> None:
    async def run(items: Sequence[int], until: float) -> Sequence[int | Exception]:
        if 0 in items:
            raise StoreUnavailableError("all of it")
        return [ValueError(str(item)) if item < 0 else item for item in items]

    batcher = Batcher(run, deadline_s=1.0)

    async def one(item: int) -> int:
        return await batcher.submit(item)

    done = await asyncio.gather(one(1), one(-1), one(2), return_exceptions=True)
    assert (done[0], str(done[1]), done[2]) == (1, "-1", 2)
    errors = await asyncio.gather(one(0), one(1), return_exceptions=True)
    assert [type(error) for error in errors] == [StoreUnavailableError] * 2
    assert errors[0] is not errors[1]
    assert await one(5) == 5
    await batcher.close()


async def test_a_batcher_is_bounded_in_number_and_time() -> None:
    cancelled = 0

    async def run(items: Sequence[int], until: float) -> Sequence[int]:
        nonlocal cancelled
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return items

    batcher = Batcher(run, deadline_s=0.1, max_batch=1, max_waiting=3)

    async def one(item: int) -> int:
        return await batcher.submit(item)

    begin = time.monotonic()
    tasks = [asyncio.create_task(one(item)) for item in range(5)]
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, StoreUnavailableError) for error in done)
    assert time.monotonic() - begin < 0.3
    assert cancelled >= 1
    waiting = asyncio.create_task(one(1))
    await asyncio.sleep(0.01)
    await batcher.close()
    with pytest.raises(StoreUnavailableError):
        await waiting
