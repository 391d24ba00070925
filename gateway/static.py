"""Files of a page, served as they are under a policy that allows nothing else.

No script and no style but its own files, no request but to this server, no framing.

They are read once, at start, so that no request names a path of the disk. They hold no numbers and
no secrets: anybody may load them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastapi.responses import Response

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain; charset=utf-8",
}
SAFE = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""The headers of a page and of its data."""


class Files:
    """What lies below a folder, by path."""

    def __init__(self, folder: Path, headers: Mapping[str, str] = SAFE) -> None:
        self._headers = dict(headers)
        self._files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.suffix in KINDS
        }

    def serve(self, name: str) -> Response:
        body = self._files.get(name)
        if body is None:
            return Response(status_code=404)
        return Response(body, media_type=KINDS[Path(name).suffix], headers=self._headers)
