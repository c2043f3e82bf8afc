"""Reads the Dockerfile, so that what it says can be held to rules and run without a Docker engine."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Step:
    """One instruction, with continued lines joined."""

    stage: str
    name: str
    text: str

    def exec_form(self) -> list[str]:
        """Return the JSON array in it."""
        words: list[str] = json.loads(self.text[self.text.index("[") :])
        return words

    def variables(self) -> dict[str, str]:
        """Return what an ``ENV`` sets."""
        return dict(word.split("=", 1) for word in shlex.split(self.text))


def steps() -> list[Step]:
    """Return all steps; the last stage is called ``final``."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    found = []
    stage = ""
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        name, _, text = line.partition(" ")
        if name == "FROM":
            stage = text.split(" AS ")[1].strip() if " AS " in text else "final"
        found.append(Step(stage, name, re.sub(r"\s+", " ", text).strip()))
    return found


def of(stage: str, name: str) -> list[Step]:
    return [step for step in steps() if (step.stage, step.name) == (stage, name)]
