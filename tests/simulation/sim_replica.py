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
from broker.store.seal import KeyEncryptionKey
from broker.store.sealed import SealedStore

HOST = "github.com"
MIN_TTL_S = 300.0
REFRESH_AHEAD_S = 900.0
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
        github = GitHubLine(world.github, machine)
        self.store = store = parts.store(backend, [KEK])
        turns = Turns(total=48, per_owner=16)
        installations = Installations(store, github, turns, host=HOST, ttl_s=600.0, cooldown_s=10.0)
        self.minter = minter = parts.minter(
            store,
            github,
            installations,
            turns,
            MintSettings(cooldown_s=10.0, budget_per_minute=120),
            grant_hint=lambda: None,
        )
        self.auditor = auditor = Auditor(store)
        self.issuer = parts.issuer(
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
        self.keys = KeyRegister(store)
        self.ender = Ender(store, github, auditor)
        self.hooks = HookReactor(store, auditor)
        await store.open()
        installations.start()
        auditor.start()
        self.ender.start()
        self.hooks.start()
        self.ready = True
