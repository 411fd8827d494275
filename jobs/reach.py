"""Whether a server answers, known within seconds.

Takes an address; gives the fault in a few words, or "" if something answers there. Libraries try
again for minutes at a server that is gone, and some wait for ever at one that accepts a connection
and is then silent. So whoever is about to call one asks here first. Never sends a secret, and never
says whether the server is the right one in version or rights: the library's own call says that.
"""

from __future__ import annotations

import os
import socket
import urllib.parse

SECONDS = 10.0
"""How long a server may take to accept a connection, and then to answer."""

_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a gRPC client begins: the preface of HTTP/2 and empty settings."""
_SETTINGS_FRAME = 4  # the fourth byte of every HTTP/2 server's first frame
_POSTGRES = bytes((0, 0, 0, 8, 4, 210, 22, 47))  # "do you speak TLS?", answered by S or N
_DATABASES = {"postgresql": (5432, _POSTGRES), "mysql": (3306, b""), "mssql": (1433, None)}
"""A database's port, and what makes its server answer (None: nothing known)."""


def web_fault(url: str) -> str:
    """Why no web server answers at an http(s) URL, through the environment's proxies if it has any.

    Any answer counts, also a refusal, a redirection or an unknown certificate.
    """
    import http.client  # these take long to import, and most commands ask no web server
    import ssl
    import urllib.error
    import urllib.request

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    request = urllib.request.Request(_without_user(url), headers={"User-Agent": "nml-orch"})
    try:
        urllib.request.build_opener(Stay).open(request, timeout=SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, ssl.SSLError) and not isinstance(reason, TimeoutError):
            return ""
        return fault_of(reason) if isinstance(reason, OSError) else str(reason)
    except (http.client.HTTPException, ValueError) as error:
        return f"what answers there is no web server ({' '.join(str(error).split())[:80]})"
    except OSError as error:
        return fault_of(error)
    return ""


def grpc_fault(host: str, port: int) -> str:
    """Why no gRPC server answers at a port."""
    try:
        first = _first_bytes(host, port, _HTTP2)
    except OSError as error:
        return fault_of(error)
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return ""  # it has refused what is no TLS: it is there
    if len(first) > 3 and first[3] == _SETTINGS_FRAME and not first.startswith(b"HTTP/"):
        return ""
    kind = "a web server" if first.startswith(b"HTTP/") else "another kind of server"
    return f"{kind} answers there"


def database_fault(url: str) -> str:
    """Why no database server answers at a URL; "" too for a database that is a file."""
    parts = urllib.parse.urlsplit(url)
    known = _DATABASES.get(parts.scheme.partition("+")[0])
    if known is None or not parts.hostname:
        return ""
    usual, greeting = known
    try:
        _first_bytes(parts.hostname, parts.port or usual, greeting)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return fault_of(error)
    return ""


def fault_of(error: OSError) -> str:
    """An error of a connection, in a few words."""
    if isinstance(error, TimeoutError):
        return f"no answer within {SECONDS:g} s"
    if isinstance(error, socket.gaierror):
        return "no machine of that name is known"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: no server listens there"
    return error.strerror or " ".join(str(error).split()) or type(error).__name__


def _first_bytes(host: str, port: int, request: bytes | None) -> bytes:
    """The start of a server's answer to a request. None: only connect."""
    with socket.create_connection((host, port), SECONDS) as connection:
        if request is None:
            return b""
        connection.sendall(request)
        first = connection.recv(64)
    if not first:
        raise OSError("it closes the connection without an answer")
    return first


def _without_user(url: str) -> str:
    """The URL without user, password and query: a probe needs none, and `urllib` takes no user."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))
