"""One replica: the broker's own use cases, put together as in ``broker.build``, on simulated wires."""

from dataclasses import dataclass

from sim_github import GitHubLine, SimulatedGitHub
from sim_loop import Machine, VirtualLoop
from sim_store import Database, SimulatedSqlite, StoreClock, Wire
from sim_weather import Weather

from broker.access.limits import RateLimiter
from broker.audit import Auditor
from broker.issuing.ending import Ender
from broker.issuing.hooks import HookReactor
from broker.issuing.installations import Installations
from broker.issuing.keys import KeyRegister
from broker.issuing.minting import Minter, MintSettings
from broker.issuing.tokens import Issuer, IssueSettings
from broker.issuing.turns import Turns
from broker.ports import GitHub, Meter
from broker.store.seal import KeyEncryptionKey
from broker.store.sealed import SealedStore

HOST = "github.com"
MIN_TTL_S = 300.0
REFRESH_AHEAD_S = 900.0
TTL_S = 600.0
COOLDOWN_S = 10.0
KEK = KeyEncryptionKey.of_secret(b"the key of all simulated stores ", origin="a simulation")


@dataclass(frozen=True)
class Parts:
    """The classes that replicas are made of; a mutant is one with something taken out."""

    backend: type[SimulatedSqlite] = SimulatedSqlite
    store: type[SealedStore] = SealedStore
    issuer: type[Issuer] = Issuer
    minter: type[Minter] = Minter


@dataclass
class World:
    """What all replicas of a story share."""

    loop: VirtualLoop
    weather: Weather
    database: Database
    github: SimulatedGitHub
    parts: Parts


@dataclass
class Rooms:
    """The use cases of one process."""

    installations: Installations
    minter: Minter
    auditor: Auditor
    issuer: Issuer
    keys: KeyRegister
    ender: Ender
    hooks: HookReactor

    @classmethod
    def of(cls, store: SealedStore, github: GitHub, parts: Parts, meter: Meter | None = None) -> "Rooms":
        turns = Turns(total=48, per_owner=16)
        installations = Installations(store, github, turns, host=HOST, ttl_s=TTL_S, cooldown_s=COOLDOWN_S)
        minter = parts.minter(
            store,
            github,
            installations,
            turns,
            MintSettings(cooldown_s=COOLDOWN_S, budget_per_minute=120),
            grant_hint=lambda: None,
            meter=meter,
        )
        auditor = Auditor(store, meter)
        issuer = parts.issuer(
            store,
            admin=None,
            minter=minter,
            installations=installations,
            limits=RateLimiter(store),
            auditor=auditor,
            settings=IssueSettings(
                min_ttl_s=MIN_TTL_S, refresh_ahead_s=REFRESH_AHEAD_S, timeout_s=25.0, allowed_owners=None
            ),
        )
        ender = Ender(store, github, auditor, meter)
        return cls(
            installations, minter, auditor, issuer, KeyRegister(store), ender, HookReactor(store, auditor)
        )

    def start(self) -> None:
        self.installations.start()
        self.auditor.start()
        self.ender.start()
        self.hooks.start()


class Replica:
    """A process of the broker."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self.name = name
        self.machine = Machine(world.loop, name)
        self.ready = False
        self.machine.spawn(self._run(), name="start")

    async def _run(self) -> None:
        world, machine, parts = self._world, self.machine, self._world.parts
        backend = parts.backend(
            lambda: Wire(world.loop, machine, world.database, world.weather), StoreClock(world.loop)
        )
        self.store = store = parts.store(backend, [KEK])
        rooms = Rooms.of(store, GitHubLine(world.github, machine), parts)
        self.minter, self.auditor, self.issuer = rooms.minter, rooms.auditor, rooms.issuer
        self.keys, self.ender, self.hooks = rooms.keys, rooms.ender, rooms.hooks
        await store.open()
        rooms.start()
        self.ready = True
