"""How many packages a user installs with sobre, besides torch and what torch itself brings.

Walks the installed metadata from sobre's own requirements, extras left out. Exits with 1 above LIMIT.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement

LIMIT = 45


def closure(root: str) -> set[str]:
    """`root` and everything that it needs, by normalised name."""
    found: set[str] = set()
    waiting = [(root, frozenset[str]())]
    done: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in done:
            continue
        done.add((name, extras))
        found.add(name)
        for requirement in map(Requirement, _requires(name)):
            wanted = [{"extra": extra} for extra in extras] or [{"extra": ""}]
            if requirement.marker is None or any(requirement.marker.evaluate(one) for one in wanted):
                waiting.append((_normal(requirement.name), frozenset(requirement.extras)))
    return found


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        sys.exit(f"{name} is required and not installed; run `make setup`")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    """Print the number and the names."""
    ours = sorted(closure("sobre") - closure("torch") - {"sobre"})
    print(f"core: {len(ours)} packages besides torch and its own (at most {LIMIT}): {', '.join(ours)}")
    return int(len(ours) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
