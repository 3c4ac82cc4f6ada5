"""Who may read the page, and who may change something with it.

    from this machine       everyone may read; a change needs the key
    from other machines     reading needs the key too

The key travels in the header `x-page-key`, which no other site can send, or for reading in a cookie. On a loopback
address only requests that name a loopback host are answered, so that no other site can point its name here.
"""

import hmac
import ipaddress
from collections.abc import Mapping

COOKIE = "page-key"
HEADER = "x-page-key"


def is_loopback(host: str) -> bool:
    """Whether a host, with or without port and brackets, is this machine's own."""
    name = host.strip()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Access:
    """The rules for a server that listens on `host` with `key`."""

    def __init__(self, host: str, key: str) -> None:
        self._key = key
        self._open = is_loopback(host)

    def may_read(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool:
        """Whether a request may see the page."""
        if self._open:
            return is_loopback(headers.get("host", ""))
        return self.may_change(headers) or self.is_key(cookies.get(COOKIE, ""))

    def may_change(self, headers: Mapping[str, str]) -> bool:
        """Whether a request may change something."""
        if self._open and not is_loopback(headers.get("host", "")):
            return False
        return self.is_key(headers.get(HEADER, ""))

    def is_key(self, given: str) -> bool:
        """Whether `given` is the key; takes as long for every wrong key."""
        return hmac.compare_digest(given.encode(), self._key.encode())
