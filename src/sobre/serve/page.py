"""The chat page: four files of this package, read once, served with a policy that lets nothing else in."""

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
    "index.html": "text/html; charset=utf-8",
    "chat.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
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
    return [
        Asset("/" if name == "index.html" else f"/{name}", media_type, (folder / name).read_bytes())
        for name, media_type in TYPES.items()
    ]
