"""The status page as one document without outside assets, fed by `GET /status`.

It holds nothing of the fleet, so whoever has no key may see it: it asks for one. Its policy allows
exactly the styles and the script that are in it, and no text from outside to become markup.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

_STYLE = ("page.css",)
_SCRIPT = ("format.js", "topology.js", "panels.js", "page.js")


@dataclass(frozen=True, slots=True)
class Page:
    html: str
    headers: dict[str, str]


@lru_cache(1)
def load_page() -> Page:
    """Read from the package's assets once."""
    style, script = _read(_STYLE), _read(_SCRIPT)
    html = _read(("page.html",)).replace("{{style}}", style).replace("{{script}}", script)
    policy = (
        "default-src 'none'",
        f"style-src '{_digest(style)}'",
        f"script-src '{_digest(script)}'",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return Page(html, headers)


def _read(names: tuple[str, ...]) -> str:
    assets = files("proxy") / "assets"
    return "".join((assets / name).read_text(encoding="utf-8") for name in names)


def _digest(text: str) -> str:
    """A source expression of a content security policy."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
