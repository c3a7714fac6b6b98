"""sobre: a budget becomes the best open reasoning model that it buys.

Five public names, imported only when they are used, so that `import sobre` costs nothing:

    model = sobre.load_model("out/demo/rl")
    engine = sobre.Engine(model)
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Engine", "Ledger", "Tokenizer", "load_model", "solve"]

_HOMES = {
    "Engine": "sobre.engine.engine",
    "Ledger": "sobre.ledger.ledger",
    "Tokenizer": "sobre.tokenizer.tokenizer",
    "load_model": "sobre.models.checkpoint",
    "solve": "sobre.plan.solve",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"sobre has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
