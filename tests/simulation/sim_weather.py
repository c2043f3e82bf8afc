"""What chance does to messages: how long they take, and which of them are lost. All from one seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass

NEVER = float("inf")
LATEST_S = 4.0
"""So long a late request is under way at most."""


@dataclass(frozen=True, slots=True)
class Fate:
    """Of one message: seconds to the far end, seconds back (``NEVER``: lost), and whether it is late.

    A late request reaches the far end after its sender has given up and after younger ones: a command of
    a connection that was closed, still in the network.
    """

    there_s: float
    back_s: float
    late: bool = False


@dataclass(frozen=True, slots=True)
class Climate:
    """How likely things are, each call on its own."""

    name: str
    slow: float = 0.0
    lost: float = 0.0
    late: float = 0.0
    cancels: float = 0.0
    github_slow: float = 0.0
    github_fails: float = 0.0
    github_limits: float = 0.0
    github_lies: float = 0.0
    trouble: float = 0.0


CALM = Climate("calm")
BUSY = Climate("busy", slow=0.1, cancels=0.05, github_slow=0.1)
ROUGH = Climate(
    "rough", slow=0.08, lost=0.01, late=0.01, cancels=0.05, github_slow=0.1, github_fails=0.08,
    github_limits=0.01, github_lies=0.15, trouble=0.15,
)  # fmt: skip
STORM = Climate(
    "storm", slow=0.15, lost=0.04, late=0.04, cancels=0.1, github_slow=0.15, github_fails=0.2,
    github_limits=0.02, github_lies=0.15, trouble=0.25,
)  # fmt: skip


class Weather:
    """Draws fates."""

    def __init__(self, chance: random.Random, time: Callable[[], float]) -> None:
        self.chance = chance
        self._time = time
        self.climate = chance.choices((CALM, BUSY, ROUGH, STORM), (3, 2, 3, 2))[0]
        self.faults: list[float] = []
        """When messages were lost or late, and the like: what excuses an extra mint."""
        self.still = False
        self.over = False

    def _hits(self, likely: float) -> bool:
        return not (self.over or self.still) and likely > 0 and self.chance.random() < likely

    def store(self) -> Fate:
        """Return the fate of a call of the store: some milliseconds, at times longer than its deadline."""
        climate, chance = self.climate, self.chance
        there, back = chance.expovariate(600), chance.expovariate(600)
        if self._hits(climate.slow):
            there += chance.expovariate(20)
        if self._hits(climate.slow):
            back += chance.expovariate(20)
        if self._hits(climate.lost):
            self.faults.append(self._time())
            return Fate(there, NEVER) if chance.random() < 0.6 else Fate(NEVER, NEVER)
        if self._hits(climate.late):
            self.faults.append(self._time())
            return Fate(chance.uniform(1, LATEST_S), NEVER, late=True)
        return Fate(there, back)

    def github(self) -> Fate:
        """Return the fate of a call of GitHub: hundredths of seconds, at times many seconds.

        Quicker than the real one, so that who follows a mint does not ask the store a hundred times.
        """
        climate, chance = self.climate, self.chance
        there, back = chance.uniform(0.002, 0.03), chance.uniform(0.002, 0.03)
        if self._hits(climate.github_slow):
            there += chance.expovariate(2)
        if self._hits(climate.github_slow):
            back += chance.expovariate(2) if chance.random() < 0.7 else chance.uniform(2, 9)
        if self._hits(climate.github_fails / 2):
            self.faults.append(self._time())
            return Fate(there, NEVER) if chance.random() < 0.5 else Fate(NEVER, NEVER)
        return Fate(there, back)

    def github_fails(self) -> bool:
        if self._hits(self.climate.github_fails):
            self.faults.append(self._time())
            return True
        return False

    def github_limits(self) -> bool:
        if self._hits(self.climate.github_limits):
            self.faults.append(self._time())
            return True
        return False

    def github_lies(self) -> bool:
        return self._hits(self.climate.github_lies)

    def cancels(self) -> bool:
        return self._hits(self.climate.cancels)

    def trouble(self) -> bool:
        return self._hits(self.climate.trouble)
