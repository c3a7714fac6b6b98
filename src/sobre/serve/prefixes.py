"""A model's computed prefixes, kept in a folder from one run of the server to the next.

A file that is damaged or belongs to another model is named and left aside, and the server goes without; at its end it
is replaced. Prefixes belong to keys by what the key is, not by its name or its place in the key file.
"""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from sobre.engine.engine import Engine
from sobre.errors import SobreError


class KeptPrefixes:
    """The file of one model; `say` tells what became of it."""

    def __init__(self, engine: Engine, identity: str, folder: Path, name: str, say: Callable[[str], None]) -> None:
        self.engine, self.identity, self.say = engine, identity, say
        self.path = folder / f"{quote(name, safe='')}.prefixes"

    def load(self) -> None:
        """Find again what an earlier server left, if it fits."""
        if not self.path.exists():
            return
        try:
            n_tokens = self.engine.load_prefixes(self.path, self.identity)
        except SobreError as error:
            self.say(f"prefixes: {error}; starting without them")
            return
        self.say(f"prefixes: {n_tokens:,} tokens found again in {self.path}")

    def save(self) -> None:
        """Leave what this server has computed to the next one."""
        try:
            n_tokens = self.engine.save_prefixes(self.path, self.identity)
        except (SobreError, OSError) as error:
            self.say(f"prefixes: nothing was kept: {error}")
            return
        self.say(f"prefixes: {n_tokens:,} tokens kept in {self.path}")
