"""What a chosen library does not take goes to another kernel: said once for each reason."""

import logging
from functools import cache

log = logging.getLogger(__name__)


@cache
def log_once(op: str, name: str, why: str, instead: str) -> None:
    """Log that the implementation `name` of an operation refuses its operands, and what runs for it."""
    log.info("%s: %s %s; %s runs instead", op, name, why, instead)
