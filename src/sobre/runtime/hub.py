"""Why the Hugging Face hub gave nothing, in words that say what to do."""


def why(
    error: Exception,
    *,
    unreachable: str,
    gated: str,
    no_revision: str,
    no_repository: str,
    other: str,
    no_file: str | None = None,
) -> str:
    """The text that fits an error of huggingface_hub (`other` where there is none); the hub's own words come last."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    mirror = "HF_ENDPOINT names a mirror of the hub, HF_HOME a cache that is somewhere else"
    texts: tuple[tuple[type[Exception], str | None], ...] = (  # some of these kinds are others, too: the first is taken
        (LocalEntryNotFoundError, f"{unreachable} {mirror}"),
        (GatedRepoError, gated),
        (RevisionNotFoundError, no_revision),
        (RepositoryNotFoundError, no_repository),
        (EntryNotFoundError, no_file),
    )
    text = next((text for kind, text in texts if text is not None and isinstance(error, kind)), other)
    return f"{text} ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
