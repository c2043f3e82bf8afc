# ruff: noqa: S608 - table names are constants
"""Whoever reads the store gets nothing; whoever writes to it gains no identity (rule 11, HARDENING 21)."""

import asyncio
import base64
import json
import logging
import sqlite3

import pytest
from harness import Inside, World, bearer
from stage import database, events, verdict

from broker.access.keys import checksum, generate
from broker.errors import ConflictError
from broker.issuing.keys import KeyRegister
from broker.store.seal import KeyEncryptionKey, Kind, Sealer

OK, AWAY = (200, "ok"), (503, "store_unavailable")


def everything(world: World) -> bytes:
    """Return all that lies in the folder, and every column of every table."""
    files = b"".join(path.read_bytes() for path in world.folder.glob("broker.db*"))
    db = database(world)
    tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    rows = [repr(row) for table in tables for row in db.execute(f"SELECT * FROM {table}")]
    db.close()
    return files + "\n".join(rows).encode()


async def test_the_whole_store_holds_no_secret(world: World) -> None:
    world.github.over_grant_permissions = {}
    async with world.inside(encryption_keys=base64.b64encode(bytes(range(32))).decode()) as app:
        key = await app.key("acme/*")
        admin = await app.key(admin=True)
        for shape in ("legacy", "stateless"):
            world.github.token_shape = shape  # type: ignore[assignment]
            answer = await app.token(key, "acme/widgets", refresh=shape == "stateless")
            assert verdict(answer) == OK
        await app.token(key, "acme/nothing")
        await app.token(key, "stranger/secrets")
        world.github.over_grant_permissions = {"issues": "write"}
        await app.token(key, "acme/gadgets")
        await app.broker.auditor.flush(everything=True)
        found = everything(world)
    assert len(world.github.tokens) == 3
    for secret in (*world.github.tokens, key, admin):
        for form in (
            secret.encode(),
            secret[18:60].encode(),
            base64.b64encode(secret.encode())[4:40],
            secret.encode().hex().encode()[:60],
        ):
            assert form not in found
    for line in world.pem.splitlines()[1:-1]:
        assert line.encode() not in found
    assert bytes(range(32)) not in found
    assert b"acme/*" not in found  # policies are sealed, too
    assert oct((world.folder / "broker.db").stat().st_mode)[-3:] == "600"


def swap(db: sqlite3.Connection, table: str, name: str, one: str, two: str) -> None:
    blobs = {
        which: db.execute(f"SELECT blob FROM {table} WHERE {name} = ?", (which,)).fetchone()[0]
        for which in (one, two)
    }
    for which, other in ((one, two), (two, one)):
        db.execute(f"UPDATE {table} SET blob = ? WHERE {name} = ?", (blobs[other], which))


def spoil(blob: bytes, how: str) -> bytes:
    return {
        "cut": blob[:-1],
        "cut to the header": blob[:3],
        "empty": b"",
        "longer": blob + b"\x00",
        "first bit": bytes((blob[0] ^ 1,)) + blob[1:],
        "key number": blob[:2] + bytes((blob[2] ^ 3,)) + blob[3:],
        "nonce": blob[:5] + bytes((blob[5] ^ 1,)) + blob[6:],
        "text": blob[:20] + bytes((blob[20] ^ 1,)) + blob[21:],
        "tag": blob[:-1] + bytes((blob[-1] ^ 0x80,)),
        "zeros": bytes(len(blob)),
    }[how]


HOWS = [
    "cut",
    "cut to the header",
    "empty",
    "longer",
    "first bit",
    "key number",
    "nonce",
    "text",
    "tag",
    "zeros",
]


async def scope_ids(app: Inside, world: World, key: str, *names: str) -> list[str]:
    """Warm each name; return the ids of their scopes."""
    found: list[str] = []
    for name in names:
        assert verdict(await app.token(key, name)) == OK
        db = database(world)
        found += [row[0] for row in db.execute("SELECT scope FROM tokens") if row[0] not in found]
        db.close()
    return found


async def test_tokens_swapped_between_scopes(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async with world.inside() as app:
        key = await app.key("acme/*")
        one, two = await scope_ids(app, world, key, "acme/widgets", "acme/gadgets")
        db = database(world)
        swap(db, "tokens", "scope", one, two)
        mints = world.github.count("mint")
        for name in ("acme/widgets", "acme/gadgets"):
            answer = await app.token(key, name)
            assert verdict(answer) == OK
            assert answer.json()["repositories"] == [name]
            minted = world.github.tokens[answer.json()["token"]]
            assert [world.github.repositories[number].full_name for number in minted.repositories or ()] == [
                name
            ]
        assert world.github.count("mint") == mints + 2
        assert "stored token refused" in caplog.text
        db.close()


@pytest.mark.parametrize("how", HOWS)
async def test_a_spoilt_token_is_minted_anew(
    world: World, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.inside() as app:
        key = await app.key("acme/*")
        first = (await app.token(key, "acme/widgets")).json()["token"]
        db = database(world)
        (blob,) = db.execute("SELECT blob FROM tokens").fetchone()
        db.execute("UPDATE tokens SET blob = ?", (spoil(blob, how),))
        answer = await app.token(key, "acme/widgets")
        assert verdict(answer) == OK
        assert answer.json()["token"] != first
        assert any(record.levelno == logging.CRITICAL for record in caplog.records)
        db.close()


async def test_a_token_replayed_under_a_name_of_its_own(world: World) -> None:
    """A blob of the one scope put under the name of a scope that has none."""
    async with world.inside() as app:
        wide, narrow = await app.key("acme/*"), await app.key("acme/gadgets")
        one, two = await scope_ids(app, world, wide, "acme/widgets", "acme/gadgets")
        db = database(world)
        (blob,) = db.execute("SELECT blob FROM tokens WHERE scope = ?", (one,)).fetchone()
        db.execute("UPDATE tokens SET blob = ? WHERE scope = ?", (blob, two))
        answer = await app.token(narrow, "acme/gadgets")
        assert answer.json()["repositories"] == ["acme/gadgets"]
        db.close()


@pytest.mark.parametrize("how", HOWS)
async def test_a_spoilt_key_record_is_503_never_401(world: World, how: str) -> None:
    async with world.inside() as app:
        key, other = await app.key("acme/*"), await app.key("acme/*")
        db = database(world)
        (blob,) = db.execute("SELECT blob FROM keys WHERE id = ?", (key[5:17],)).fetchone()
        db.execute("UPDATE keys SET blob = ? WHERE id = ?", (spoil(blob, how), key[5:17]))
        for _ in range(2):
            answer = await app.token(key, "acme/widgets")
            assert verdict(answer) == AWAY
            assert answer.headers["retry-after"]
        assert (await app.http.get("/v1/whoami", headers=bearer(key))).status_code == 503
        assert verdict(await app.token(other, "acme/widgets")) == OK  # nobody else is hurt
        db.execute("UPDATE keys SET blob = ? WHERE id = ?", (blob, key[5:17]))
        assert verdict(await app.token(key, "acme/widgets")) == OK
        db.close()


async def test_a_record_moved_to_another_id_gives_no_policy(world: World) -> None:
    async with world.inside() as app:
        strong, weak = await app.key("*/*"), await app.key("acme/gadgets")
        db = database(world)
        (blob,) = db.execute("SELECT blob FROM keys WHERE id = ?", (strong[5:17],)).fetchone()
        db.execute("UPDATE keys SET blob = ? WHERE id = ?", (blob, weak[5:17]))
        assert verdict(await app.token(weak, "acme/widgets")) == AWAY
        swapped, _ = generate()
        db.execute("INSERT INTO keys SELECT ?, blob, purge_at, 99 FROM keys WHERE id = ?",
                   (swapped.reveal()[5:17], strong[5:17]))  # fmt: skip
        assert verdict(await app.token(swapped.reveal(), "acme/widgets")) == AWAY
        # an id of somebody else's, with a secret of one's own: another digest
        forged = f"ghbk_{strong[5:17]}_{weak[18:61]}"
        assert verdict(await app.token(forged + checksum(forged), "acme/widgets")) == (401, "invalid_api_key")
        db.close()


async def test_a_record_in_clear_or_sealed_by_another_is_no_record(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/gadgets")
        db = database(world)
        plain = json.dumps({"id": key[5:17], "repositories": ["*/*"], "role": "admin"}).encode()
        store_id = db.execute("SELECT value FROM state WHERE name = 'id'").fetchone()[0]
        for blob in (plain, Sealer(store_id, {1: bytes(32)}).seal(Kind.KEY, key[5:17], plain)):
            db.execute("UPDATE keys SET blob = ? WHERE id = ?", (blob, key[5:17]))
            assert verdict(await app.token(key, "acme/widgets")) == AWAY
        db.close()


async def test_an_older_version_of_a_record_is_refused_by_who_saw_the_newer(world: World) -> None:
    """A revocation is not undone by putting the record of yesterday back."""
    async with world.inside() as app:
        key = await app.key("acme/*")
        assert verdict(await app.token(key, "acme/widgets")) == OK
        db = database(world)
        (before,) = db.execute("SELECT blob FROM keys").fetchone()
        await KeyRegister(app.broker.store).revoke(key[5:17], by="test")
        assert verdict(await app.token(key, "acme/widgets")) == (401, "invalid_api_key")
        db.execute("UPDATE keys SET blob = ?", (before,))
        for _ in range(3):
            assert verdict(await app.token(key, "acme/widgets")) == AWAY
        db.close()


async def test_a_key_just_made_here_is_protected_as_well(world: World) -> None:
    """The process that revoked a key nobody has used yet has seen the newer version, too."""
    async with world.inside() as app:
        key = await app.key("acme/*")
        db = database(world)
        (before,) = db.execute("SELECT blob FROM keys").fetchone()
        await KeyRegister(app.broker.store).revoke(key[5:17], by="test")
        db.execute("UPDATE keys SET blob = ?", (before,))
        assert verdict(await app.token(key, "acme/widgets")) == AWAY
        db.close()


async def test_owners_swapped(world: World) -> None:
    world.github.add_repository("other/things")
    second = world.github.install(world.app, "other")
    async with world.inside() as app:
        key = await app.key("*/*")
        await app.token(key, "acme/widgets")
        await app.token(key, "other/things")
        db = database(world)
        swap(db, "owners", "owner", "acme", "other")
        for name, installation in (("acme/gadgets", world.installation.id), ("other/things", second.id)):
            answer = await app.token(key, name)
            assert verdict(answer) == OK
            assert answer.json()["installation_id"] == installation
        db.execute("DELETE FROM owners")
        swap(db, "names", "owner", "acme", "other")  # the pinned accounts
        db.execute("DELETE FROM tokens")
        assert verdict(await app.token(key, "acme/widgets")) == AWAY
        db.close()


# -- keys that wrap the data key ---------------------------------------------------------------------------


def b64(fill: int) -> str:
    return base64.b64encode(bytes([fill]) * 32).decode()


async def test_encryption_keys_rotate_without_loss(world: World) -> None:
    async with world.inside(encryption_keys=b64(1)) as app:
        key = await app.key("acme/*")
        first = (await app.token(key, "acme/widgets")).json()["token"]
    for keys in (f"{b64(2)},{b64(1)}", b64(2), f"{b64(2)}, {b64(3)}", b64(3)):
        async with world.inside(encryption_keys=keys) as app:
            assert (await app.token(key, "acme/widgets")).json()["token"] == first


async def test_the_private_key_rotates_without_loss(world: World) -> None:
    """Without BROKER_ENCRYPTION_KEYS it is what the store hangs on."""
    async with world.inside() as app:
        key = await app.key("acme/*")
        first = (await app.token(key, "acme/widgets")).json()["token"]
    new = world.app.new_private_key()
    for pem in (f"{new},{world.pem}", new):
        async with world.inside(github_private_key=pem) as app:
            assert (await app.token(key, "acme/widgets")).json()["token"] == first


async def test_a_key_that_opens_nothing_is_503_and_names_what_is_missing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.inside(encryption_keys=b64(1)) as app:
        key = await app.key("acme/*")
    db = database(world)
    (name,) = db.execute("SELECT name FROM state WHERE name LIKE 'dk:%'").fetchone()
    before = db.execute("SELECT * FROM state ORDER BY name").fetchall()
    caplog.clear()
    async with world.inside(encryption_keys=b64(2), admin_key=generate()[0].reveal()) as app:
        assert verdict(await app.token(key, "acme/widgets")) == AWAY
        admin = app.broker.settings.admin_key
        assert admin is not None
        answer = await app.http.get("/v1/whoami", headers=bearer(admin.get_secret_value()))
        assert verdict(answer) == AWAY
        assert (await app.http.get("/readyz")).status_code == 503
        said = " ".join(str(getattr(record, "cause", "")) for record in caplog.records)
        assert name.rpartition(":")[2] in said
    assert db.execute("SELECT * FROM state ORDER BY name").fetchall() == before  # no new data key over data
    db.close()
    async with world.inside(encryption_keys=b64(1)) as app:
        assert verdict(await app.token(key, "acme/widgets")) == OK


async def test_a_wrap_that_got_lost_is_written_again(world: World) -> None:
    async with world.inside(encryption_keys=f"{b64(1)},{b64(2)}") as app:
        key = await app.key("acme/*")
    db = database(world)
    names = [row[0] for row in db.execute("SELECT name FROM state WHERE name LIKE 'dk:%'")]
    assert len(names) == 2
    db.execute("DELETE FROM state WHERE name = ?", (names[0],))
    async with world.inside(encryption_keys=f"{b64(1)},{b64(2)}") as app:
        assert verdict(await app.token(key, "acme/widgets")) == OK
    assert {row[0] for row in db.execute("SELECT name FROM state WHERE name LIKE 'dk:%'")} == set(names)
    db.close()


async def test_two_stores_do_not_understand_each_other(world: World) -> None:
    """The same keys, another store: a record copied over is no record."""
    async with world.inside() as app:
        key = await app.key("acme/*")
    db = database(world)
    row = db.execute("SELECT id, blob, purge_at, seq FROM keys").fetchone()
    db.close()
    world.store_url = f"sqlite:///{world.folder / 'second' / 'broker.db'}"
    async with world.inside() as app:
        await app.key("acme/*")
        other = sqlite3.connect(world.folder / "second" / "broker.db", isolation_level=None)
        other.execute("INSERT INTO keys VALUES (?, ?, ?, 77)", row[:3])
        other.close()
        assert verdict(await app.token(key, "acme/widgets")) == AWAY
        assert await events(app, "token.issued") == []
    assert oct((world.folder / "second").stat().st_mode)[-3:] == "700"


async def test_a_forgotten_key_opens_nothing_any_more(any_world: World) -> None:
    """The last step of a rotation: whoever has the old key and a later dump gets nothing."""
    fingerprints = [KeyEncryptionKey.of_secret(bytes([fill]) * 32, origin="x").fingerprint for fill in (1, 2)]
    async with any_world.inside(encryption_keys=f"{b64(1)},{b64(2)}") as app:
        key = await app.key("acme/*")
        with pytest.raises(ConflictError):
            await app.broker.store.forget_key(fingerprints[0])
    listed = await asyncio.to_thread(any_world.command, "store", "list-keys", BROKER_ENCRYPTION_KEYS=b64(2))
    assert sorted(line.split()[0] for line in listed.stdout.splitlines()) == sorted(fingerprints)
    assert f"{fingerprints[0]}  configured nowhere here" in listed.stdout
    await asyncio.to_thread(forget, any_world, "0" * 16, b64(2), fingerprints[0])
    await asyncio.to_thread(forget, any_world, fingerprints[0], b64(2), "no more")
    async with any_world.inside(encryption_keys=b64(1)) as app:
        assert verdict(await app.token(key, "acme/widgets")) == AWAY
    async with any_world.inside(encryption_keys=b64(2)) as app:
        assert verdict(await app.token(key, "acme/widgets")) == OK


def forget(world: World, fingerprint: str, configured: str, said: str) -> None:
    done = world.command("store", "forget-key", fingerprint, BROKER_ENCRYPTION_KEYS=configured)
    assert said in done.stderr, done.stderr
    assert done.returncode == (1 if fingerprint.startswith("0000") else 0)
