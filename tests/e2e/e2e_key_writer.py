"""A process that makes and revokes keys as fast as it can and says so after each step; it gets killed."""

import asyncio
import sys

from broker import settings as broker_settings
from broker.build import build_backend, build_keks
from broker.issuing.keys import KeyPolicy, KeyRegister
from broker.model import Role
from broker.store.sealed import SealedStore


async def main() -> None:
    settings = broker_settings.load()
    store = SealedStore(build_backend(settings), build_keks(settings))
    await store.open()
    register = KeyRegister(store)
    policy = KeyPolicy.parse(
        name="writer", role=Role.CALLER, repositories=["acme/*"], permissions=None, rate_limit_per_minute=None
    )
    for number in range(10_000):
        key, record = await register.create(policy, by="writer", expires_in_s=None)
        sys.stdout.write(f"created {key.reveal()}\n")
        sys.stdout.flush()
        if number % 2:
            sys.stdout.write(f"revoking {record.id}\n")
            sys.stdout.flush()
            await register.revoke(record.id, by="writer")
            sys.stdout.write(f"revoked {record.id}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
