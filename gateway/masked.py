"""Settings as they may be shown: what opens something in an address is not.

An address carries secrets in two places, before its host (`redis://user:pw@host`) and in its query
(`?password=pw`, which redis-py reads as well). Parameters are hidden by what their names say.
Rejected: taking the address apart. One that cannot be read, because its password holds a slash or
a bracket, is shown in a message all the more often.
"""

from __future__ import annotations

import re

HIDDEN = "…"
_PARAMETER = re.compile(
    r"(?i)([?&;][^=&;\s]*(?:pass|pwd|user|secret|token|key|auth|cred|sig)[^=&;\s]*=)[^&;\s'\"]*"
)
_BEFORE_HOST = re.compile(r"(?<=://)[^/\s]\S*@")
_FROM_ENVIRONMENT = "env:"


def masked(text: str) -> str:
    """`text` with what opens something in its addresses hidden."""
    return _BEFORE_HOST.sub(f"{HIDDEN}@", _PARAMETER.sub(rf"\1{HIDDEN}", text))


def masked_header(value: str) -> str:
    """A header for a server elsewhere: where its value comes from, or that there is one."""
    return value if value.startswith(_FROM_ENVIRONMENT) else HIDDEN
