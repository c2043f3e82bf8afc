"""The short way for the two calls that machines make all day: parsed by hand, without loading click.

Loading click takes longer than all the rest of such a call. Only the plainest forms are understood here;
whatever else there is on a command line (help, other options, a mistake) is left to click, which decides
alone. A test holds both ways to the same outcome over a table of command lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def find_quick(arguments: Sequence[str]) -> Callable[[], None] | None:
    """Return what to run for a plain `github token …` or `git-credential …`, or None: ask click."""
    words = list(arguments)
    if words[:2] == ["github", "token"]:
        return _token(words[2:])
    if len(words) == 2 and words[0] == "git-credential" and words[1] in {"get", "store", "erase"}:  # noqa: PLR2004
        return lambda: _git_credential(words[1])
    return None


def _token(words: list[str]) -> Callable[[], None] | None:
    """Understand `OWNER/REPO… [--json] [--refresh] [--min-ttl SECONDS]`, in any order."""
    from broker_cli.tokens import MAX_MIN_TTL_S, print_token, token_request  # noqa: PLC0415

    names: list[str] = []
    as_json = refresh = False
    min_ttl_s: int | None = None
    rest = iter(words)
    for word in rest:
        if word == "--json":
            as_json = True
        elif word == "--refresh":
            refresh = True
        elif word == "--min-ttl":
            number = next(rest, "")
            if not (number.isascii() and number.isdecimal() and len(number) <= len(str(MAX_MIN_TTL_S))):
                return None
            min_ttl_s = int(number)
            if min_ttl_s > MAX_MIN_TTL_S:
                return None
        elif word.startswith("-"):
            return None
        else:
            names.append(word)

    def run() -> None:
        from broker_cli.settings import Flags  # noqa: PLC0415

        request = token_request(tuple(names), min_ttl_s=min_ttl_s, refresh=refresh)
        print_token(Flags(), request, as_json=as_json)

    return run


def _git_credential(verb: str) -> None:
    from broker_cli.git_credential import answer_git  # noqa: PLC0415
    from broker_cli.settings import Flags  # noqa: PLC0415

    answer_git(Flags(), verb)
