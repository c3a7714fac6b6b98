"""The chat page: the files of web/, read once, served with a policy that lets nothing else in."""

from dataclasses import dataclass
from importlib.resources import files

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    """One file of the page."""

    path: str
    media_type: str
    content: bytes


def load_assets() -> list[Asset]:
    """Every file of the page, with the path it is served at."""
    folder = files("sobre.serve") / "web"
    found = sorted((file for file in folder.iterdir() if file.is_file()), key=lambda file: file.name)
    return [
        Asset("/" if file.name == "index.html" else f"/{file.name}", media_type(file.name), file.read_bytes())
        for file in found
    ]


def media_type(name: str) -> str:
    """By the end of a file's name."""
    return TYPES[name[name.rindex(".") :]]
