"""Models by their name on the Hugging Face hub: fetched once into its cache, weights as safetensors only.

Cache (`HF_HOME`), token (`HF_TOKEN`, or `hf auth login`) and mirror (`HF_ENDPOINT`) are the hub's own. What is in the
cache needs no network.
"""

import re
from pathlib import Path

from sobre.errors import CheckpointError
from sobre.runtime.hub import why

WANTED = ("*.json", "*.safetensors", "*.jinja")
"""What is fetched: nothing that would have to be unpickled or run."""
UNWANTED = ("original/*", "consolidated*")
"""The same weights once more, in another layout."""


def is_hub_id(model: Path | str) -> bool:
    """Whether this names a model of the hub: OWNER/NAME, with no folder OWNER here that would make it a path."""
    path = Path(model)
    owned = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w][\w.-]*", str(model)) is not None
    return owned and not path.exists() and not path.parent.is_dir()


def resolve(model: Path | str, *, revision: str | None = None) -> Path:
    """The folder of `model`: a path as it is, or the snapshot of that hub id, fetched if need be.

    Raises CheckpointError that says what stands in the way, and what to do.
    """
    if not is_hub_id(model):
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            str(model), revision=revision or None, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(_why(str(model), revision, error)) from None
    return Path(found)


def _why(model: str, revision: str | None, error: Exception) -> str:
    """What to do about it."""
    at = f" at revision {revision}" if revision else ""
    name = model.partition("/")[2]
    return why(
        error,
        unreachable=f"{model} is no folder here, not in the hub's cache{at}, and the hub cannot be reached. Where there"
        f" is a network: `hf download {model} --local-dir {name}`; bring that folder here and name its path, ./{name}.",
        gated=f"{model} is gated: accept its terms at https://huggingface.co/{model}, then set HF_TOKEN",
        no_revision=f"{model} has no revision {revision}: a branch, a tag or a commit",
        no_repository=f"{model} is no folder here, and the hub has no such model; a private one needs HF_TOKEN",
        other=f"{model} is no folder here, and the hub gave no model of that name{at}",
    )
