"""Models by their name on the Hugging Face hub: fetched once into its cache, weights as safetensors only."""

import re
from pathlib import Path

from sobre.errors import CheckpointError

WANTED = ("*.json", "*.safetensors", "*.jinja")
"""What is fetched: nothing that would have to be unpickled or run."""


def resolve(model: Path | str, *, revision: str | None = None) -> Path:
    """The folder of `model`: itself if it is one, else the snapshot of that hub id (token and cache are the hub's own).

    Raises CheckpointError when there is neither.
    """
    folder = Path(model)
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(model)):
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=list(WANTED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{model} is no folder here, and the hub gave no model of that name{at} ({type(error).__name__}: {reason})"
        ) from None
