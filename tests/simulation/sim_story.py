"""A story: what callers, admins, GitHub and bad luck do to three replicas, all of it drawn from one seed."""

import asyncio
import functools
import hashlib
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim_github import SimulatedGitHub
from sim_ledger import Ending, Given, History, Key, Ledger, Write, reach_of
from sim_loop import Machine, StuckError, VirtualLoop
from sim_replica import HOST, KEK, Parts, Replica, World
from sim_store import EPOCH, Database, SimulatedSqlite, StoreClock, Wire
from sim_weather import CALM, LATEST_S, Weather

from broker.access.keys import PresentedKey, parse
from broker.errors import BrokerError, InvalidApiKeyError, StoreError
from broker.issuing.ending import Actor
from broker.issuing.keys import KeyChange, KeyPolicy, KeyRegister
from broker.issuing.tokens import Issued, Origin, TokenRequest
from broker.model import DEFAULT_PERMISSIONS, RepositoryName, Role, Scope, Target, TargetKind
from broker.ports import HookWork
from broker.store.sealed import SealedStore

REPLICAS = 3
STEPS = 10
PATIENCE_S = 40.0
REST_S = 90.0
SHORT_OVERLAP_S = 2
FLOOD_LIMIT = 3
WIDGETS = RepositoryName("acme", "widgets")
GADGETS = RepositoryName("acme", "gadgets")
SCOPES = (
    Scope.of_repositories(HOST, [WIDGETS], DEFAULT_PERMISSIONS),
    Scope.of_repositories(HOST, [WIDGETS, GADGETS], DEFAULT_PERMISSIONS),
    Scope.of_owner(HOST, "acme", DEFAULT_PERMISSIONS),
    Scope.of_repositories(HOST, [WIDGETS], ("metadata",)),
    Scope.of_owner(HOST, "acme", ("metadata",)),
)
POLICIES = (("acme/*",), ("acme/widgets", "acme/gadgets"), ("*/*",))
NARROW = (("acme/widgets",), ("acme/gadgets",))
TARGETS = (
    Target(TargetKind.REPOSITORY, "acme/widgets"),
    Target(TargetKind.REPOSITORY, "acme/gadgets"),
    Target(TargetKind.OWNER, "acme"),
)


@dataclass
class Outcome:
    """Of one story."""

    seed: int
    climate: str
    violations: list[str]
    trace: list[str]
    given: int
    minted: int
    steps: int

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join((*self.trace, str(self.steps))).encode()).hexdigest()


@functools.cache
def beginning() -> tuple[bytes, tuple[PresentedKey, ...]]:
    """Return a store with a key for each of ``POLICIES``, made by the product, once a process."""
    loop = VirtualLoop()
    weather = Weather(random.Random(0), loop.time)
    weather.climate = CALM
    database = Database()

    async def make() -> list[PresentedKey]:
        machine = Machine(loop, "maker")
        backend = SimulatedSqlite(lambda: Wire(loop, machine, database, weather), StoreClock(loop))
        store = SealedStore(backend, [KEK])
        await store.open()
        made = []
        for number, patterns in enumerate(POLICIES):
            policy = KeyPolicy.parse(
                name=f"key {number}",
                role=Role.CALLER,
                repositories=patterns,
                permissions=None,
                rate_limit_per_minute=None,
            )
            key, _ = await KeyRegister(store).create(policy, by="a story")
            made.append(parse(key.reveal()))
        await store.close()
        return made

    try:
        keys = loop.run_until_complete(make())
        return database.image(), tuple(keys)
    finally:
        loop.close()
        database.close()


@dataclass
class Story:
    """One seed, played."""

    seed: int
    world: World
    favourite: str = ""
    """The scene that is drawn ten times as often."""
    ledger: Ledger = field(default_factory=Ledger)
    replicas: list[Replica] = field(default_factory=list)
    graves: list[Replica] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    presented: dict[str, PresentedKey] = field(default_factory=dict)
    running: set["asyncio.Task[Any]"] = field(default_factory=set)
    numbers: int = 0

    @property
    def chance(self) -> random.Random:
        return self.world.weather.chance

    @property
    def now(self) -> float:
        return self.world.loop.time()

    def tell(self, text: str) -> None:
        self.trace.append(f"{self.now:.6f} {text}")

    def request_id(self, what: str) -> str:
        self.numbers += 1
        return f"{what}-{self.numbers}"

    # -- the whole -------------------------------------------------------------------------------

    async def play(self, keys: Sequence[PresentedKey]) -> None:
        self.world.github.install("acme", ["widgets", "gadgets", "gizmos"])
        for number, (key, patterns) in enumerate(zip(keys, POLICIES, strict=True)):
            self._add_key(f"key{number}", key, patterns)
        self.replicas = [Replica(self.world, f"replica{number}") for number in range(REPLICAS)]
        await asyncio.sleep(0.1)
        for _ in range(STEPS):
            await self._step()
            pause = self.chance.choices(
                (0.0, self.chance.uniform(0, 0.05), self.chance.uniform(0, 3)), (3, 4, 3)
            )
            await asyncio.sleep(pause[0])
        await self._rest()
        await self._recovered()

    def _add_key(self, label: str, key: PresentedKey, patterns: tuple[str, ...]) -> None:
        self.presented[label] = key
        self.ledger.keys.append(Key(label, key.id, History(patterns)))

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    async def _step(self) -> None:
        if self.world.weather.trouble():
            self.spawn(self._trouble())
        scenes: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            self._ask_many, self._race, self._hand_over, self._cold, self._ambush, self._clash, self._age,
            self._reinstall, self._create_key, self._rotate, self._sweep, self._flood,
        )  # fmt: skip
        weights = [
            weight * (10 if scene.__name__ == self.favourite else 1)
            for scene, weight in zip(scenes, (5, 5, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1), strict=True)
        ]
        scene = self.chance.choices(scenes, weights)[0]
        if scene in {self._age, self._ambush}:
            await scene()
        else:
            self.spawn(scene())

    def _able(self, scope: Scope) -> Key:
        """Return a key that may have a token of ``scope`` now, if there is one."""
        able = [key for key in self.ledger.keys if key.may(scope, self.now, self.now)]
        return self.chance.choice(able or self.ledger.keys)

    async def _cold(self) -> None:
        """A scope that nobody has a token of, asked for everywhere, and something ends it meanwhile."""
        scope = self.chance.choice(SCOPES)
        await self._revoke(Target(TargetKind.OWNER, "acme"))
        end = self.chance.choice((self._revoke, self._block, self._hook))
        self.spawn(self._after(self.chance.uniform(0, 0.08), end))
        self._ask_everywhere(scope)

    async def _ambush(self) -> None:
        """As ``_cold``, with nothing else going on, and who mints stops or dies when GitHub has done it."""
        await self._quiet()
        scope = self.chance.choice(SCOPES)
        await self._revoke(Target(TargetKind.OWNER, "acme"))
        await asyncio.sleep(0.3)
        if self.world.weather.climate.trouble:
            self.world.github.ambush = self._fall_upon
            self.world.weather.still = True  # else of those who wait nobody lasts until the lease ends
        self._ask_everywhere(scope)
        await self._quiet()
        self.world.weather.still = False
        self.world.github.ambush = None

    def _ask_everywhere(self, scope: Scope) -> None:
        for replica in self.replicas:
            for _ in range(self.chance.choice((1, 1, 2))):
                self.spawn(self._ask(self._able(scope), scope, self._min_ttl(), replica=replica))

    async def _hand_over(self) -> None:
        """A key that never had a token is ended with its tokens while it gets its first one."""
        scope = self.chance.choice(SCOPES)
        key = await self._create_key()
        await self._ask(self._able(scope), scope, 0)
        if key is None:
            return
        width = self.chance.choice((0.003, 0.01))
        self.spawn(self._after(self.chance.uniform(0, width), functools.partial(self._end_key, key)))
        for _ in range(2):
            self.spawn(self._after(self.chance.uniform(0, width), lambda: self._ask(key, scope, 0)))

    async def _flood(self) -> None:
        """A key with a limit asks more often than it may, on all replicas."""
        key = await self._create_key(limit=FLOOD_LIMIT)
        if key is not None:
            for _ in range(3 * FLOOD_LIMIT):
                ask = functools.partial(self._ask, key, SCOPES[0], 0)
                self.spawn(self._after(self.chance.uniform(0, 1), ask))

    async def _race(self) -> None:
        """Callers and somebody who ends something, all within some hundredths of a second."""
        scope = self.chance.choice(SCOPES)
        key = self._able(scope)
        if self.chance.random() < 0.7:
            await self._ask(self._able(scope), scope, 0)
        width = self.chance.choice((0.004, 0.02, 0.08))
        ends: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            self._revoke, self._block, lambda: self._end_key(key), lambda: self._change_key(key), self._hook,
        )  # fmt: skip
        self.spawn(self._after(self.chance.uniform(0, width), self.chance.choices(ends, (3, 3, 2, 2, 2))[0]))
        for _ in range(self.chance.choice((1, 2, 3))):
            whose = key if self.chance.random() < 0.6 else self.chance.choice(self.ledger.keys)
            what = scope if self.chance.random() < 0.7 else self.chance.choice(SCOPES)
            ask = functools.partial(self._ask, whose, what, self._min_ttl())
            self.spawn(self._after(self.chance.uniform(0, width), ask))

    async def _clash(self) -> None:
        """Several admins at one key."""
        key = self._able(self.chance.choice(SCOPES))
        changes = self.chance.choices((self._change_key, self._end_key, self._rotate), (3, 2, 1), k=2)
        await asyncio.gather(
            *(self._after(self.chance.uniform(0, 0.005), functools.partial(one, key)) for one in changes)
        )
        for scope in self.chance.sample(SCOPES, 2):
            await self._ask(key, scope, 0)

    def _fall_upon(self, machine: Machine) -> None:
        found = next((one for one in self.replicas if one.machine is machine), None)
        if found is not None and not self.world.weather.over:
            longer_than_a_lease = self.chance.choice((5.2, 6.0, 8.0))
            self.spawn(
                self._pause(found, longer_than_a_lease) if self.chance.random() < 0.75 else self._crash(found)
            )

    async def _age(self) -> None:
        """Let time pass to shortly before or after the end of some token."""
        await self._quiet()
        github = self.world.github
        live = [one for one in github.minted.values() if github.alive(one)]
        before_s = self.chance.choice((-10.0, 100.0, 270.0, 296.0, 500.0, 850.0, 1500.0))
        aged = self.chance.choice(live) if live else None
        seconds = max(60.0, aged.expires_at - github.now() - before_s) if aged else 700.0
        began = self.now  # what is still under way in the background is overtaken by its own deadline
        self.world.loop.leap(seconds)
        self.ledger.disturbances.append((began, self.now))
        self.tell(f"{seconds:.3f} s pass")
        await asyncio.sleep(0.05)
        await self._ask_many(next((one for one in SCOPES if aged and aged.of(one)), None))

    @staticmethod
    async def _after(seconds: float, scene: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        await asyncio.sleep(seconds)
        await scene()

    async def _quiet(self) -> None:
        while self.running:
            await asyncio.wait(set(self.running))

    async def _rest(self) -> None:
        """End all trouble, and wait until what is left to do in the background is done."""
        await self._quiet()
        world = self.world
        world.weather.over = True
        world.database.down_until = world.github.down_until = 0.0
        until = self.now + REST_S
        await asyncio.sleep(LATEST_S + 0.5 if world.weather.climate.late else 0.5)
        while self._waiting():
            if self.now > until:
                self.ledger.violations.append(f"recovery: {self._waiting()} after {REST_S:g} s")
                return
            await asyncio.sleep(1.0)

    def _waiting(self) -> str:
        connection = self.world.database.connection
        for table in ("outbox", "hook_queue"):
            (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
            if count:
                return f"{count} in the {table}"
        dying = sum(len(one.minter._dying) for one in self.replicas if one.ready)
        return f"{dying} late tokens live" if dying else ""

    async def _recovered(self) -> None:
        """When all is well again, a caller who may gets a token within the longest cool-down."""
        able = [
            (key, scope)
            for key in self.ledger.keys
            for scope in SCOPES
            if key.may(scope, self.now + REST_S, self.now + REST_S)  # none that ends meanwhile
            and not any(any(history.possible(self.now, self.now)) for history in self.ledger.blocks.values())
        ]
        if not able:
            return
        key, scope = self.chance.choice(able)
        for _ in range(20):
            if await self._ask(key, scope, 0):
                return
            await asyncio.sleep(4.0)
        if key.certain(self.now):
            self.ledger.violations.append(f"recovery: {key.label} gets no token, 80 s after the last fault")

    # -- callers ---------------------------------------------------------------------------------

    def _replica(self) -> Replica | None:
        found = self.chance.choice(self.replicas)
        return found if found.ready and found.machine.talks else None

    async def _ask_many(self, scope: Scope | None = None) -> None:
        scope = scope or self.chance.choice(SCOPES)
        key = self._able(scope)
        for _ in range(self.chance.choice((1, 2, 3, 5))):
            if self.chance.random() < 0.3:
                key = self.chance.choice(self.ledger.keys)
            if self.chance.random() < 0.1:
                scope = self.chance.choice(SCOPES)
            refresh = self.chance.random() < 0.08
            self.spawn(self._ask(key, scope, self._min_ttl(), refresh=refresh))

    def _min_ttl(self) -> int:
        return self.chance.choice((0, 0, 0, 0, 0, 600, 3300))

    async def _ask(
        self,
        key: Key,
        scope: Scope,
        min_ttl: int,
        *,
        refresh: bool = False,
        replica: Replica | None = None,
    ) -> bool:
        replica = replica or self._replica()
        if replica is None or not replica.ready:
            return False
        request_id = self.request_id("ask")
        asked_at = self.now
        self.ledger.asked.append((asked_at, scope, min_ttl, refresh))
        self.tell(f"{request_id} {key.label} {scope.repositories} {min_ttl} {refresh} -> {replica.name}")
        work = replica.issuer.issue(
            self.presented[key.label], TokenRequest(scope, min_ttl, refresh), Origin(request_id, None)
        )
        issued = await self._call(replica, request_id, work)
        if isinstance(issued, InvalidApiKeyError) and not key.may_have_ended(self.now):
            self.ledger.violations.append(
                f"rule 7: {request_id}: {key.label} is refused, and it has not ended"
            )
        if not isinstance(issued, Issued):
            return False
        given = Given(key, scope, issued.token.sha256, asked_at, self.now, min_ttl, issued.cached, request_id)
        self.ledger.given.append(given)
        return True

    async def _call(self, replica: Replica, request_id: str, work: Coroutine[Any, Any, Any]) -> Any:
        """Return what a replica answers: a value, an error, or None if no answer came."""
        await asyncio.sleep(self.chance.uniform(0, 0.002))
        task = replica.machine.spawn(work, name=request_id)
        if self.world.weather.cancels():
            self.world.loop.call_later(self.chance.expovariate(5), task.cancel)
        gone = replica.machine.gone
        await asyncio.wait([task, gone], timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.add_done_callback(functools.partial(self._expected, request_id))
            task.cancel()
            self.tell(f"{request_id} no answer")
            return None
        if task.cancelled():
            self.tell(f"{request_id} hung up")
            return None
        self._expected(request_id, task)
        error = task.exception()
        self.tell(f"{request_id} {getattr(error, 'code', '') if error else 'ok'}")
        return error or task.result()

    def _expected(self, request_id: str, task: "asyncio.Task[Any]") -> None:
        """See that a request fails in no way but the broker's own, also if nobody waits for it any more."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, BrokerError):
            self.ledger.violations.append(f"{request_id} failed with {error!r}")

    # -- admins ----------------------------------------------------------------------------------

    async def _admin(
        self,
        request_id: str,
        event: str,
        work: Callable[[Replica, Actor], Coroutine[Any, Any, Any]],
        write: Write[Any] | None = None,
        history: "History[Any] | list[Write[Any]] | None" = None,
        *,
        ending: Ending | None = None,
    ) -> Any:
        """Make one call of the admin API and write down what it means."""
        replica = self._replica()
        if replica is None:
            if write is not None and history is not None:
                history.remove(write)
            return None
        began = self.now
        if ending is not None:
            self.ledger.endings.append(ending)
        answer = await self._call(replica, request_id, work(replica, Actor("the admin", "admin", request_id)))
        self.ledger.disturbances.append((began, self.now))
        acknowledged = answer is not None and not isinstance(answer, BrokerError)
        refused = isinstance(answer, BrokerError) and not isinstance(answer, StoreError)
        if write is not None and history is not None:
            write.returned, write.acknowledged = self.now, acknowledged
            if refused:
                history.remove(write)
        if acknowledged:
            if event:
                self.ledger.acknowledged.append((event, request_id))
            if ending is not None:
                ending.acknowledged_at = self.now
        return answer

    async def _revoke(self, wanted: Target | None = None) -> None:
        request_id = self.request_id("revoke")
        installation_id = None
        roll = 1.0 if wanted else self.chance.random()
        target = wanted or self.chance.choice(TARGETS)
        if roll < 0.15:
            target = Target(TargetKind.ALL)
        elif roll < 0.3 and self.ledger.given:
            target = Target(TargetKind.TOKEN, self.chance.choice(self.ledger.given).sha)
        elif roll < 0.45:
            target = Target(TargetKind.OWNER, "acme")
            installation_id = self.world.github.installed["acme"].id
        self.tell(f"{request_id} {target.kind} {target.name if target.owner else ''}")
        ending = Ending(request_id, reach_of(target, installation_id), None, self.now)
        await self._admin(
            request_id,
            "token.revoked",
            lambda replica, actor: replica.ender.revoke(
                target, actor, reason="a story", installation_id=installation_id
            ),
            ending=ending,
        )

    async def _block(self) -> None:
        target = self.chance.choice(TARGETS)
        history = self.ledger.blocks.setdefault(target, History(False))
        request_id = self.request_id("block")
        self.tell(f"{request_id} {target.name}")
        write = history.begin(True, self.now)
        ending = Ending(request_id, reach_of(target), None, self.now)
        await self._admin(
            request_id,
            "block.set",
            lambda replica, actor: replica.ender.block(target, actor, reason="a story"),
            write,
            history,
            ending=ending,
        )
        await asyncio.sleep(self.chance.uniform(0, 2))
        for _ in range(12):
            request_id = self.request_id("unblock")
            write = history.begin(False, self.now)
            done = await self._admin(
                request_id, "", lambda replica, actor: replica.ender.unblock(target, actor), write, history
            )
            if isinstance(done, bool):
                return
            await asyncio.sleep(1.0)

    async def _end_key(self, key: Key) -> None:
        kill = self.chance.random() < 0.7
        request_id = self.request_id("end-key")
        self.tell(f"{request_id} {key.label} kill={kill}")
        write = Write(float("-inf"), self.now)
        key.ends.append(write)

        async def end(replica: Replica, actor: Actor) -> bool:
            killed = await replica.keys.revoke(key.id, by="a story", actor=actor, kill=kill)
            await replica.ender.kill(killed)
            return True

        ending = Ending(request_id, None, key, self.now) if kill else None
        event = "key.revoked" if kill else ""  # of two at once the second may find nothing left to do
        await self._admin(request_id, event, end, write, key.ends, ending=ending)

    async def _change_key(self, key: Key) -> None:
        request_id = self.request_id("change-key")
        patterns = self.chance.choice((*NARROW, *NARROW, POLICIES[0]))
        self.tell(f"{request_id} {key.label} {patterns}")
        write = key.patterns.begin(patterns, self.now)
        await self._admin(
            request_id,
            "",
            lambda replica, actor: replica.keys.change(
                key.id, KeyChange(repositories=patterns), by="a story", actor=actor
            ),
            write,
            key.patterns,
        )

    async def _create_key(self, limit: int | None = None) -> Key | None:
        patterns = self.chance.choice(POLICIES)
        policy = KeyPolicy.parse(
            name="made in a story",
            role=Role.CALLER,
            repositories=patterns,
            permissions=None,
            rate_limit_per_minute=limit,
        )
        request_id = self.request_id("create-key")
        self.tell(f"{request_id} {patterns}")
        answer = await self._admin(
            request_id,
            "key.created",
            lambda replica, actor: replica.keys.create(policy, by="a story", actor=actor),
        )
        if not isinstance(answer, tuple):
            return None
        self._add_key(request_id, parse(answer[0].reveal()), patterns)
        self.ledger.keys[-1].limit = limit
        return self.ledger.keys[-1]

    async def _rotate(self, key: Key | None = None) -> None:
        key = key or self.chance.choice(self.ledger.keys)
        overlap = self.chance.choice((0, 0, SHORT_OVERLAP_S, 600))
        request_id = self.request_id("rotate")
        began = self.now
        self.tell(f"{request_id} {key.label} overlap={overlap}")
        write = Write(began + overlap if overlap else float("-inf"), began)
        key.ends.append(write)
        answer = await self._admin(
            request_id,
            "key.rotated",
            lambda replica, actor: replica.keys.rotate(key.id, overlap_s=overlap, by="a story", actor=actor),
            write,
            key.ends,
        )
        if isinstance(answer, tuple):
            if overlap == SHORT_OVERLAP_S:
                last = self.chance.uniform(0.5, 1.0) * overlap
                self.spawn(self._after(last, lambda: self._ask(key, self.chance.choice(SCOPES), 0)))
            text, record = answer
            if record.repositories not in key.patterns.possible(began, self.now):
                self.ledger.violations.append(f"rule 6: {request_id} brought an older policy back")
            self._add_key(f"{key.label}+{request_id}", parse(text.reveal()), record.repositories)
            self.ledger.keys[-1].limit = record.rate_limit_per_minute
            if record.expires_at is not None:
                end = Write(record.expires_at - EPOCH, began, self.now, acknowledged=True)
                self.ledger.keys[-1].ends.append(end)
                self.ledger.keys[-1].born_ending = True

    # -- GitHub and webhooks ---------------------------------------------------------------------

    async def _hook(self) -> None:
        replica = self._replica()
        if replica is None:
            return
        request_id = self.request_id("hook")
        target = self.chance.choice(TARGETS)
        drops, voids = ((target,), ()) if self.chance.random() < 0.7 else ((), ("acme",))
        self.tell(f"{request_id} {drops} {voids}")
        work = HookWork("installation_repositories.removed", request_id, drops, voids)

        async def deliver() -> bool:
            kept = await replica.store.keep_hook(work, body_sha256=request_id)
            replica.hooks.wake()
            return kept

        await self._call(replica, request_id, deliver())

    async def _reinstall(self) -> None:
        self.tell("reinstalled")
        self.world.github.install("acme", ["widgets", "gadgets", "gizmos"])
        # When the replicas notice is not known from outside: within the life of a picture of an installation.
        self.ledger.disturbances.append((self.now, float("inf")))

    async def _sweep(self) -> None:
        replica = self._replica()
        if replica is not None:
            await self._call(replica, self.request_id("sweep"), replica.store.sweep())

    # -- trouble ---------------------------------------------------------------------------------

    async def _trouble(self) -> None:
        replica = self.chance.choice(self.replicas)
        await self.chance.choice(
            (lambda: self._crash(replica), lambda: self._pause(replica), self._store_down, self._github_down)
        )()

    async def _crash(self, replica: Replica) -> None:
        if not replica.machine.talks:
            return
        began = self.now
        self.tell(f"{replica.name} killed")
        replica.machine.kill()
        self.graves.append(replica)
        await asyncio.sleep(self.chance.uniform(0, 3))
        self.replicas[self.replicas.index(replica)] = Replica(self.world, replica.name)
        self.ledger.troubles.append((began, self.now))

    async def _pause(self, replica: Replica, seconds: float = 0.0) -> None:
        began, seconds = self.now, seconds or self.chance.choice((0.5, 2.0, 5.5, 7.0, 12.0))
        self.tell(f"{replica.name} stopped for {seconds:g}")
        replica.machine.pause()
        await asyncio.sleep(seconds)
        replica.machine.go_on()
        self.ledger.troubles.append((began, self.now))

    async def _store_down(self) -> None:
        began, seconds = self.now, self.chance.choice((0.2, 1.5, 6.0))
        self.tell(f"store down for {seconds:g}")
        self.world.database.down_until = began + seconds
        await asyncio.sleep(seconds)
        self.ledger.troubles.append((began, self.now))

    async def _github_down(self) -> None:
        began, seconds = self.now, self.chance.choice((0.5, 3.0, 12.0))
        self.tell(f"GitHub down for {seconds:g}")
        self.world.github.down_until = began + seconds
        await asyncio.sleep(seconds)
        self.ledger.troubles.append((began, self.now))


def play(seed: int, parts: Parts | None = None, favourite: str = "") -> Outcome:
    """Play the story of a seed; the same arguments and code give the same story."""
    image, keys = beginning()
    loop = VirtualLoop()
    weather = Weather(random.Random(seed), loop.time)
    database = Database(image)
    clock_off_s = weather.chance.choice((0.0, 0.0, 0.0, 45.0, -600.0, 3000.0))
    github = SimulatedGitHub(loop, weather, clock_off_s=clock_off_s)
    story = Story(seed, World(loop, weather, database, github, parts or Parts()), favourite)
    story.ledger.slow = weather.climate is not CALM
    unexpected: list[str] = []
    loop.set_exception_handler(lambda _, context: unexpected.append(_told(context)))
    try:
        try:
            loop.run_until_complete(story.play(keys))
        except StuckError as error:
            story.ledger.violations.append(f"stuck: {error}")
        _bury(loop, story)
        violations = story.ledger.judge(github, database, weather.faults)
    finally:
        loop.close()
        database.close()
    return Outcome(
        seed,
        weather.climate.name,
        [*violations, *unexpected],
        story.trace,
        len(story.ledger.given),
        len(github.minted),
        loop.steps,
    )


def _told(context: dict[str, Any]) -> str:
    return f"unexpected: {context.get('message')}: {context.get('exception')!r}"


def _bury(loop: VirtualLoop, story: Story) -> None:
    """End every task that is left, so that nothing of this story outlives it."""
    for replica in (*story.replicas, *story.graves):
        replica.machine.bury()
    for _ in range(100):
        left = asyncio.all_tasks(loop)
        if not left:
            return
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.001))
    raise StuckError(f"tasks that do not end: {left}")
