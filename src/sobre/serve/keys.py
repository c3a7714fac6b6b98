"""Who may ask, how much, and for how many dollars. All of it in memory: a restart forgets what was used.

A key is kept as its SHA-256 and compared in constant time with every key there is. Limits are token buckets: a minute's
worth at once, refilled evenly. What an answer used is known when it is over, so it is charged then, and the next
request waits until the bucket is above zero again.
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sobre.errors import ConfigError
from sobre.serve.errors import ApiError

MAX_WAIT_S = 120
"""OpenAI's clients do not wait for longer ones."""
DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one key may use; 0 is no limit."""

    requests_per_min: int = 0
    tokens_per_min: int = 0
    """Prompts and answers together."""
    usd_per_day: float = 0.0
    """Days begin at midnight UTC."""
    max_open: int = 0
    """Requests at the same time."""

    def __post_init__(self) -> None:
        for name in ("requests_per_min", "tokens_per_min", "usd_per_day", "max_open"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0 (0: no limit)")


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of the key file."""

    text: str
    name: str
    admin: bool = False
    limits: Limits = Limits()


def parse_key(line: str, number: int, limits: Limits) -> Key:
    """A line of the key file: `KEY [admin] [name=NAME] [requests_per_min=N] [tokens_per_min=N] [usd_per_day=X] ...`."""
    text, *words = line.split()
    values = {"name": f"key{number}"}
    admin = False
    for word in words:
        name, equals, value = word.partition("=")
        if word == "admin":
            admin = True
        elif equals and (name == "name" or name in Limits.__dataclass_fields__):
            values[name] = value
        else:
            known = ", ".join(["admin", "name=", *(f"{one}=" for one in Limits.__dataclass_fields__)])
            raise ConfigError(f"key {number}: {word!r} is none of {known}")
    own = {}
    for name in Limits.__dataclass_fields__:
        given = values.get(name)
        if given is None:
            own[name] = getattr(limits, name)
            continue
        try:
            own[name] = float(given) if name == "usd_per_day" else int(given)
        except ValueError:
            raise ConfigError(f"key {number}: {name}={given} is no number") from None
    return Key(text=text, name=values["name"], admin=admin, limits=Limits(**own))


@dataclass
class Bucket:
    """Holds up to a minute's worth and fills evenly; may be overdrawn."""

    per_min: int
    level: float
    at: float

    def fill(self, now: float) -> None:
        self.level = min(self.per_min, self.level + (now - self.at) * self.per_min / 60)
        self.at = now

    def wait_s(self, needed: float) -> float:
        return max(0.0, (needed - self.level) * 60 / self.per_min)


@dataclass
class Account:
    """What one key has used."""

    name: str
    limits: Limits = Limits()
    admin: bool = False
    id: str = ""
    """Of the key itself, whatever its name or place in the file; empty for everybody."""
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    n_requests: int = 0
    n_tokens: int = 0
    usd: float = 0.0
    n_open: int = 0
    usd_today: float = 0.0
    _day: int = 0
    _buckets: dict[str, Bucket] = field(default_factory=dict)

    def __post_init__(self) -> None:
        now = self.clock()
        for name in ("requests_per_min", "tokens_per_min"):
            if limit := getattr(self.limits, name):
                self._buckets[name] = Bucket(limit, limit, now)

    def admit(self) -> None:
        """Count a request, or raise the 429 or 402 that says when there is room again."""
        self._turn_day()
        limits = self.limits
        if limits.usd_per_day and self.usd_today >= limits.usd_per_day:
            raise ApiError(
                402,
                f"The budget of this key is used up: {self.usd_today:.6f} of {limits.usd_per_day:g} USD today.",
                code="insufficient_quota",
                headers={"x-should-retry": "false"},
            )
        if limits.max_open and self.n_open >= limits.max_open:
            raise too_many(f"This key has {self.n_open} requests open, of at most {limits.max_open}.", 1.0)
        now = self.clock()
        for name, needed in (("requests_per_min", 1.0), ("tokens_per_min", 1.0)):
            bucket = self._buckets.get(name)
            if bucket is None:
                continue
            bucket.fill(now)
            if bucket.level < needed:
                said = f"This key's limit of {bucket.per_min} {name.removesuffix('_per_min')} per minute is reached."
                raise too_many(said, bucket.wait_s(needed), self.headers())
        if "requests_per_min" in self._buckets:
            self._buckets["requests_per_min"].level -= 1
        self.n_requests += 1
        self.n_open += 1

    def charge(self, n_tokens: int, usd: float) -> None:
        """An admitted request is over."""
        self._turn_day()
        self.n_open -= 1
        self.n_tokens += n_tokens
        self.usd += usd
        self.usd_today += usd
        if "tokens_per_min" in self._buckets:
            bucket = self._buckets["tokens_per_min"]
            bucket.fill(self.clock())
            bucket.level -= n_tokens

    def headers(self) -> dict[str, str]:
        """OpenAI's x-ratelimit headers for the limits that there are."""
        found = {}
        for name, bucket in self._buckets.items():
            what = name.removesuffix("_per_min")
            found[f"x-ratelimit-limit-{what}"] = str(bucket.per_min)
            found[f"x-ratelimit-remaining-{what}"] = str(max(0, int(bucket.level)))
            found[f"x-ratelimit-reset-{what}"] = f"{bucket.wait_s(bucket.per_min):.3f}s"
        return found

    def cache_key(self, salt: str | None) -> str:
        """What computed prefixes are kept apart by: the key, and the request's own `cache_salt`."""
        return self.id if salt is None else f"{self.id}:{salt}"

    def report(self) -> dict[str, object]:
        """For the administrator."""
        self._turn_day()
        return {
            "name": self.name,
            "admin": self.admin,
            "requests": self.n_requests,
            "tokens": self.n_tokens,
            "usd": self.usd,
            "usd_today": self.usd_today,
            "open": self.n_open,
        }

    def _turn_day(self) -> None:
        day = int(self.wall() // DAY_S)
        if day != self._day:
            self._day, self.usd_today = day, 0.0


def too_many(message: str, wait_s: float, headers: dict[str, str] | None = None) -> ApiError:
    """429 with the time to come back, in every form that clients read."""
    wait_s = min(max(wait_s, 0.001), MAX_WAIT_S)
    waiting = {"retry-after": str(int(-(-wait_s // 1))), "retry-after-ms": str(int(-(-wait_s * 1000 // 1)))}
    return ApiError(429, message, code="too_many_requests", headers=waiting | (headers or {}))


class Keyring:
    """All the keys; without any, everybody is the one account `anyone`."""

    def __init__(self, keys: Sequence[Key], limits: Limits = Limits()) -> None:
        self._digests = [hashlib.sha256(key.text.encode()).digest() for key in keys]
        self.accounts = [
            Account(key.name, key.limits, key.admin, digest.hex())
            for key, digest in zip(keys, self._digests, strict=True)
        ]
        self.anyone = Account("anyone", limits, admin=not keys)
        self.is_open = not keys

    def find(self, key: str) -> Account | None:
        """The account of a key; every key is compared, so the time tells nothing."""
        digest = hashlib.sha256(key.encode("latin-1", "replace")).digest()
        found = None
        for own, account in zip(self._digests, self.accounts, strict=True):
            if hmac.compare_digest(digest, own):
                found = account
        return found
