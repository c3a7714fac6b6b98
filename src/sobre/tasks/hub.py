"""Problem sets by their address on the Hugging Face hub: one file of a dataset, fetched once into the hub's cache.

    hf://OWNER/SET/FILE      or hf://OWNER/SET@REVISION/FILE; a `datasets/` in front, as the hub writes it, may stand

To name a set is to allow the fetching, as for models (models/hub.py). Cache (`HF_HOME`), token (`HF_TOKEN`) and mirror
(`HF_ENDPOINT`) are the hub's own; what is in the cache needs no network, and HF_HUB_OFFLINE=1 fetches nothing.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from sobre.errors import ConfigError, DataError
from sobre.runtime.hub import why

SCHEME = "hf://"
ADDRESSES: Mapping[str, str] = {
    "gsm8k": "hf://openai/gsm8k/main/test-00000-of-00001.parquet",
    "math500": "hf://HuggingFaceH4/MATH-500/test.jsonl",
    "aime2024": "hf://HuggingFaceH4/aime_2024/data/train-00000-of-00001.parquet",
    "aime2025": "hf://math-ai/aime25/test.jsonl",
    "amc23": "hf://math-ai/amc23/test-00000-of-00001.parquet",
    "humaneval": "hf://openai/openai_humaneval/openai_humaneval/test-00000-of-00001.parquet",
    "mbpp": "hf://google-research-datasets/mbpp/sanitized/test-00000-of-00001.parquet",
    "mmlu": "hf://cais/mmlu/all/test-00000-of-00001.parquet",
    "arc_easy": "hf://allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet",
    "arc_challenge": "hf://allenai/ai2_arc/ARC-Challenge/test-00000-of-00001.parquet",
}
"""The test sets that the well-known names stand for. mgsm is none: the hub has a file for each language, in no format
that is read here."""
_ADDRESS = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)(?:@([\w.-]+))?/([^@]+)")


def located(path: str | Path) -> Path:
    """The file that a path or an address names; one on the hub is fetched if need be, and that is said.

    Raises ConfigError for an address that is none, DataError that says why the hub did not give the file.
    """
    address = str(path)
    if not address.startswith(SCHEME):
        return Path(path)
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise ConfigError(f"{address!r} is no address of a file; it would be {SCHEME}OWNER/SET/FILE")
    repo, revision, name = found[1], found[2], found[3]
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    print(f"{address}: from the hub, or its cache", file=sys.stderr, flush=True)
    try:
        return Path(hf_hub_download(repo, name, repo_type="dataset", revision=revision))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise DataError(f"{address}: {_why(repo, revision, name, error)}") from None


def _why(repo: str, revision: str | None, name: str, error: Exception) -> str:
    """What to do about it."""
    return why(
        error,
        unreachable="it is not in the hub's cache, and the hub cannot be reached. Where there is a network:"
        f" `hf download {repo} {name} --repo-type dataset --local-dir .`; bring that file here and name its path,"
        " NAME=PATH.",
        gated=f"gated: accept its terms at https://huggingface.co/datasets/{repo}, then set HF_TOKEN",
        no_revision=f"{repo} has no revision {revision}: a branch, a tag or a commit",
        no_repository=f"the hub has no dataset {repo}; a private one needs HF_TOKEN",
        no_file=f"the dataset {repo} has no file {name}",
        other="the hub gave no such file",
    )
