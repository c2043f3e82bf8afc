"""The faults of a chaos run: three tracks of them at once, by seed, each with what it may cost."""

import asyncio
import random
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from e2e_chaos_ledger import Ledger, Window, change_at_github
from e2e_relay import Relay
from harness import Service, World
from mount import Mount
from servers import RedisServer

from broker.sandbox.github import EmulatedInstallation, Fault, Hook

CALM_S = 3.0
"""Without any fault, nothing has an excuse."""
ASKED = {"contents": "read", "metadata": "read", "issues": "read"}


@dataclass
class Weather:
    """What faults are made of."""

    world: World
    server: RedisServer
    relay: Relay
    services: list[Service]
    mount: Mount
    hook: Hook
    installations: dict[str, EmulatedInstallation]
    ledger: Ledger
    patience: float
    log: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def fault(
        self, name: str, kind: str, *, leases: int = 0, owner: str | None = None
    ) -> AsyncIterator[Window]:
        """Write a fault down while it lasts."""
        window = Window(name, kind, owner, leases, time.monotonic())
        self.ledger.windows.append(window)
        try:
            yield window
        finally:
            window.ended = time.monotonic()
            begun, ended = window.begun - self.ledger.began, window.ended - self.ledger.began
            self.log.append(f"{begun:6.1f} to {ended:6.1f} s: {kind}: {name}")

    async def told(self, *command: str) -> None:
        """Tell Valkey something, again if the machine is too busy for an answer at once."""
        async with asyncio.timeout(30):
            while True:
                try:
                    await asyncio.to_thread(self.server.ask, *command)
                except TimeoutError:
                    await asyncio.sleep(0.2)
                else:
                    return

    async def restarted(self, service: Service) -> None:
        """Start a replica anew; the store may be down just now, so it need not be ready."""

        def start() -> None:
            service.start(wait=False).wait_ready(path="/livez", seconds=60)

        await asyncio.to_thread(start)


@dataclass(frozen=True)
class Step:
    """One fault of the plan: seconds to wait before it, and of its own; ``seed`` decides the rest."""

    gap_s: float
    lasts_s: float
    name: str
    seed: int


Doing = Callable[[Weather, float, random.Random], Awaitable[None]]


# -- replicas ------------------------------------------------------------------------------------


async def kill_9(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    number = chance.randrange(len(weather.services))
    service = weather.services[number]
    async with weather.fault(f"kill -9 of replica {number}", "process", leases=1):
        await asyncio.to_thread(service.kill)
        await asyncio.sleep(lasts_s / 2)
        await weather.restarted(service)


async def kill_all(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    async with weather.fault("kill -9 of all replicas", "process", leases=1):
        for service in weather.services:
            await asyncio.to_thread(service.kill)
        await asyncio.gather(*(weather.restarted(service) for service in weather.services))


async def freeze(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    """Past the lease; a call that GitHub had answered meanwhile may run out of time, and is tried again."""
    number = chance.randrange(len(weather.services))
    async with weather.fault(f"SIGSTOP of replica {number}", "process", leases=2):
        weather.services[number].signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(5.5 + lasts_s / 4)
        finally:
            weather.services[number].signal(signal.SIGCONT)


async def terminate(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    number = chance.randrange(len(weather.services))
    service = weather.services[number]
    async with weather.fault(f"SIGTERM of replica {number}", "process", leases=1):
        await asyncio.to_thread(service.stop, seconds=40)
        await weather.restarted(service)


async def rotate(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    """A new private key at GitHub and in the file; the old one is deleted at GitHub when all have the new."""
    world, mount = weather.world, weather.mount
    async with weather.fault("private key rotated", "rotation"):
        new = await asyncio.to_thread(world.app.new_private_key)
        weather.ledger.secrets.add(new)
        mount.put(pem=f"{new}\n{world.pem}")
        word = "keys that wrap the store's data key taken over"
        before = [one.log().count(word) for one in weather.services]
        end = time.monotonic() + 15
        while time.monotonic() < end:
            now = [one.log().count(word) for one in weather.services]
            if all(later > earlier for later, earlier in zip(now, before, strict=True)):
                world.app.remove_key(world.pem)
                world.pem = new
                return
            await asyncio.sleep(0.3)
        # A replica that was down has not said so. Back to the old key, so that none is left behind.
        mount.put(pem=f"{world.pem}\n{new}")
        world.app.remove_key(new)


# -- Valkey --------------------------------------------------------------------------------------


async def store_killed(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    async with weather.fault("Valkey killed, restarted with its data", "store", leases=1):
        weather.server.kill()
        await asyncio.sleep(lasts_s)
        await asyncio.to_thread(weather.server.start)


async def store_frozen(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    async with weather.fault("Valkey frozen", "store", leases=2):
        weather.server.pause()
        try:
            await asyncio.sleep(1 + lasts_s)
        finally:
            weather.server.resume()


async def store_slow(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    """Each try may get its lease and then lose its result; one takes two seconds at least."""
    delay_s = chance.choice((0.02, 0.1, 0.4, 0.9, 2.0))
    leases = 1 + int(lasts_s / 2) if delay_s > 0.1 else 1
    async with weather.fault(f"Valkey {delay_s:g} s late", "store", leases=leases):
        weather.relay.delay_s = delay_s
        await asyncio.sleep(lasts_s)
        weather.relay.delay_s = 0.0


async def store_cut(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    times = chance.randint(1, 6)
    async with weather.fault(f"connections to Valkey cut {times} times", "store", leases=times):
        for _ in range(times):
            weather.relay.cut()
            await asyncio.sleep(lasts_s / times)


async def store_paused(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    what = chance.choice(("ALL", "WRITE"))
    async with weather.fault(f"CLIENT PAUSE {what}", "store", leases=2):
        await weather.told("CLIENT", "PAUSE", str(int(lasts_s * 1000)), what)
        await asyncio.sleep(lasts_s + 0.2)


async def _configured(weather: Weather, name: str, fault: str, lasts_s: float) -> None:
    async with weather.fault(f"{name} {fault}", "store", leases=1):
        await weather.told("CONFIG", "SET", name, fault)
        await asyncio.sleep(lasts_s)
        await weather.told("CONFIG", "SET", name, "0")


async def store_cut_off(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    await _configured(weather, "min-replicas-to-write", "1", lasts_s)


async def store_full(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    await _configured(weather, "maxmemory", "1", lasts_s)


# -- GitHub --------------------------------------------------------------------------------------


def _cut(weather: Weather) -> Callable[[Any], bool]:
    """Return a condition that is always so, and notes the mints whose replies will be cut off."""

    def noted(call: Any) -> bool:
        if call.route == "mint":
            weather.ledger.cut(call)
        return True

    return noted


async def _spoiled(weather: Weather, name: str, fault: Fault, lasts_s: float) -> None:
    async with weather.fault(f"GitHub: {name}", "github", leases=1):
        weather.world.github.faults.add(fault)
        await asyncio.sleep(lasts_s)
        weather.world.github.faults.remove(fault)


async def github_fails(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    route, status = chance.choice((None, "mint", "*installation")), chance.choice((500, 502, 503))
    fault = Fault(route=route, status=status, html=chance.random() < 0.5)
    await _spoiled(weather, f"{status} on {route or 'all'}", fault, lasts_s)


async def github_resets(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    route = chance.choice((None, "mint", "revoke"))
    await _spoiled(
        weather, f"resets on {route or 'all'}", Fault(route=route, reset=True, when=_cut(weather)), lasts_s
    )


async def github_hangs(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    """No call does any work: what it held is answered 503 at the end."""
    held = threading.Event()
    try:
        await _spoiled(weather, "hangs", Fault(hold=held, status=503), lasts_s)
    finally:
        held.set()


async def github_limits(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    seconds, status, times = chance.randint(1, 3), chance.choice((403, 429)), chance.randint(1, 3)
    fault = chance.choice(
        (
            Fault.secondary_limit(route="mint", status=status, retry_after_s=seconds, times=times),
            Fault.primary_limit(route="mint", status=status, reset_in_s=seconds, times=times),
            Fault.abuse(route="mint", retry_after_s=seconds, times=times),
            Fault.secondary_limit(route="revoke", status=status, retry_after_s=seconds, times=times),
        )
    )
    await _spoiled(weather, f"{fault.status} on {fault.route}, wait {seconds} s", fault, lasts_s)


async def github_slow(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    delay_s = chance.uniform(0.5, 4)
    await _spoiled(weather, f"mints take {delay_s:.1f} s", Fault(route="mint", delay_s=delay_s), lasts_s)


async def github_loses_replies(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    """The token is made and nobody hears of it: it is asked for again."""

    whole = {"reset": True, "after_effect": True} if chance.random() < 0.5 else {"truncate": True}
    fault = Fault(route="mint", times=chance.randint(1, 5), when=_cut(weather), **whole)  # type: ignore[arg-type]
    await _spoiled(weather, f"mints' replies lost ({', '.join(whole)})", fault, lasts_s)


async def github_wrong_date(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    off_s = chance.choice((-7200, -600, 600, 7200))

    def date(now: float) -> dict[str, str]:
        return {"date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now + off_s))}

    # Not on mints: there a wrong Date is believed as far as it agrees with an hour of life.
    fault = Fault(when=lambda call: call.route != "mint", headers=date)
    await _spoiled(weather, f"Date {off_s:+d} s", fault, lasts_s)


async def github_down(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    async with weather.fault("GitHub: refuses connections", "github", leases=1):
        await asyncio.to_thread(weather.world.server.stop)
        weather.ledger.cut_all()
        await asyncio.sleep(lasts_s)
        await asyncio.to_thread(weather.world.server.start)


# -- what owners do at GitHub, and how its webhooks tell it ---------------------------------------


@asynccontextmanager
async def _told_somehow(weather: Weather, chance: random.Random) -> AsyncIterator[str]:
    hook = weather.hook
    number = chance.randrange(len(weather.services))
    hook.url = f"{weather.services[number].url}/webhooks/github"
    way = chance.choice(("told", "told twice", "told late and in disorder", "not told"))
    hook.copies = 2 if way == "told twice" else 1
    hook.losing, hook.holding = way == "not told", way.startswith("told late")
    yield way
    hook.losing, hook.copies = False, 1
    if hook.holding:
        hook.release(lambda held: chance.sample(list(held), len(held)))


async def _changed(
    weather: Weather,
    name: str,
    lasts_s: float,
    chance: random.Random,
    *,
    begin: Callable[[EmulatedInstallation], object],
    end: Callable[[EmulatedInstallation], EmulatedInstallation | None],
) -> None:
    owner = chance.choice(sorted(weather.installations))
    installation = weather.installations[owner]
    async with (
        _told_somehow(weather, chance) as way,
        weather.fault(f"{owner}: {name}, {way}", "change", owner=owner),
    ):
        weather.ledger.ends.append(change_at_github(owner))
        begin(installation)
        await asyncio.sleep(lasts_s)
        weather.ledger.ends.append(change_at_github(owner))
        weather.installations[owner] = end(installation) or installation


async def suspended(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    github = weather.world.github
    await _changed(weather, "suspended", lasts_s, chance, begin=github.suspend, end=github.unsuspend)  # type: ignore[arg-type]


async def reinstalled(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    github = weather.world.github

    def install(old: EmulatedInstallation) -> EmulatedInstallation:
        return github.install(weather.world.app, old.account, permissions=ASKED)

    await _changed(weather, "reinstalled", lasts_s / 4, chance, begin=github.uninstall, end=install)


async def permissions_changed(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    github = weather.world.github
    fewer = {"contents": "read", "metadata": "read"}
    await _changed(
        weather,
        "permission withdrawn",
        lasts_s,
        chance,
        begin=lambda one: github.set_permissions(one, fewer),
        end=lambda one: github.set_permissions(one, ASKED),  # type: ignore[arg-type, func-returns-value]
    )


async def selection_changed(weather: Weather, lasts_s: float, chance: random.Random) -> None:
    github = weather.world.github

    def narrow(one: EmulatedInstallation) -> None:
        reached = github.reach(one)
        github.set_selection(one, chance.sample(reached, len(reached) // 2))

    await _changed(
        weather,
        "fewer repositories",
        lasts_s,
        chance,
        begin=narrow,
        end=lambda one: github.set_selection(one, None),  # type: ignore[arg-type, func-returns-value]
    )


TRACKS: dict[str, tuple[Doing, ...]] = {
    "replicas": (kill_9, kill_all, freeze, terminate, rotate),
    "store": (
        store_killed,
        store_frozen,
        store_slow,
        store_cut,
        store_paused,
        store_cut_off,
        store_full,
    ),
    "github": (
        github_fails,
        github_resets,
        github_hangs,
        github_limits,
        github_slow,
        github_loses_replies,
        github_wrong_date,
        github_down,
    ),
    "owners": (suspended, reinstalled, permissions_changed, selection_changed),
}
_BY_NAME = {doing.__name__: doing for doings in TRACKS.values() for doing in doings}


def plan(seed: int, seconds: float) -> dict[str, list[Step]]:
    """Return the faults of each track: every kind once before any comes twice."""
    steps: dict[str, list[Step]] = {}
    for track, doings in TRACKS.items():
        chance = random.Random(f"{seed} {track}")
        steps[track], at, left = [], 0.0, []
        while at < seconds:
            left = left or chance.sample([doing.__name__ for doing in doings], len(doings))
            one = Step(chance.uniform(2, 8), chance.uniform(1, 6), left.pop(), chance.getrandbits(32))
            steps[track].append(one)
            at += one.gap_s + one.lasts_s
    return steps


async def blow(weather: Weather, steps: list[Step], until: float) -> None:
    """Do one track's faults, one after the other; none begins after ``until`` (monotonic)."""
    await asyncio.sleep(CALM_S)
    for step in steps:
        await asyncio.sleep(step.gap_s)
        if time.monotonic() > until:
            return
        await _BY_NAME[step.name](weather, step.lasts_s, random.Random(step.seed))
