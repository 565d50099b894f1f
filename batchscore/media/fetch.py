"""Media behind URLs, fetched once a process into a temporary folder.

A row may name any URL, so the host is checked against the policy, its addresses must be public, and the connection goes
to the very address that was checked, so that a second answer of the name server cannot redirect it. Every redirect is
checked anew. Proxies of the environment are not used, since behind one nobody knows which address is reached; neither
are cookies and credentials.
"""

from __future__ import annotations

import atexit
import http.client
import os
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import BinaryIO
from urllib.parse import quote, urljoin, urlsplit

from batchscore.errors import first_line
from batchscore.media.faults import MediaError, shown
from batchscore.media.policy import MediaPolicy

MAX_BYTES = 256 << 20  # of one file
_KEPT_BYTES = 8 << 30  # of all files on disk; the oldest are fetched again if they are needed again
_READ_SECONDS, _TOTAL_SECONDS = 10.0, 60.0  # of one read, of one attempt
_REDIRECTS = 3
_PAUSES = (0.5, 2.0)  # seconds before each further attempt
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses that may pass
_MOVED = (301, 302, 303, 307, 308)
_CHUNK = 1 << 20
_UNQUOTED = "%/:?[]@!$&'()*+,;=~"  # what a path and a query may hold
_TRANSLATED = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))  # the last 32 bits are an IPv4 address


def fetched(url: str, policy: MediaPolicy) -> BinaryIO:
    """A reader of what a URL names.

    Raises:
        MediaError: the policy refuses it, or the server does not give it.
    """
    _checked(url, policy)  # what is on disk may be there by another policy
    return _files(os.getpid()).open(url, policy)


class _Files:
    """What was fetched, in a folder that is removed when the process ends."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="batchscore-media-")
        self._kept: OrderedDict[str, str] = OrderedDict()  # path by URL, oldest first
        self._bytes = 0
        self._lock = threading.Lock()
        # each for some of the URLs: none is fetched twice at once
        self._fetching = [threading.Lock() for _ in range(64)]
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)

    def open(self, url: str, policy: MediaPolicy) -> BinaryIO:
        """A reader of the file of a URL, which is fetched unless it is there."""
        with self._fetching[hash(url) % len(self._fetching)]:
            with self._lock:
                if url in self._kept:
                    return open(self._kept[url], "rb")
            path = self._fetch(url, policy)
            file = open(path, "rb")  # noqa: SIM115
            self._keep(url, path)
            return file

    def _fetch(self, url: str, policy: MediaPolicy) -> str:
        """Fetch into a new file; its path."""
        descriptor, path = tempfile.mkstemp(dir=self._folder)
        try:
            with open(descriptor, "wb") as file:
                _with_retries(url, policy, file)
        except BaseException:
            os.unlink(path)
            raise
        return path

    def _keep(self, url: str, path: str) -> None:
        """Remember a file, and remove the oldest beyond the bound; whoever reads one of these has it open."""
        with self._lock:
            self._kept[url] = path
            self._bytes += os.path.getsize(path)
            while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= os.path.getsize(oldest)
                os.unlink(oldest)


@lru_cache(maxsize=1)
def _files(process: int) -> _Files:
    """Those of this process: a fork does not share the folder that its parent removes."""
    return _Files()


class _PassingError(Exception):
    """A failure that a further attempt may not have."""


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL taken apart."""

    secure: bool
    host: str  # ASCII
    port: int
    path: str  # with the query


def _checked(url: str, policy: MediaPolicy) -> _Target:
    """The URL taken apart; MediaError if the policy refuses it. Credentials in it are left out."""
    if not policy.allow_remote:
        raise MediaError("media-refused", f"{shown(url)} is not on this machine", "pass --allow-remote-media")
    try:
        parts = urlsplit(url)
        host, port = _ascii_host(parts.hostname or ""), parts.port
    except ValueError as error:  # UnicodeError is one
        raise MediaError("not-media", f"{shown(url)} is not a URL: {first_line(error)}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise MediaError("media-refused", f"{shown(url)} is not a URL of http or https")
    if policy.domains and host not in map(_ascii_host, policy.domains):
        hint = f"add {host} to --allowed-media-domains"
        raise MediaError("media-refused", f"{shown(url)}: {host} is not among the allowed domains", hint)
    secure = parts.scheme == "https"
    path = (parts.path or "/") + ("?" if parts.query else "") + parts.query
    return _Target(secure, host, port or (443 if secure else 80), quote(path, safe=_UNQUOTED))


def _ascii_host(host: str) -> str:
    """A host name as name servers know it; UnicodeError if it is none."""
    return host.rstrip(".").encode("idna").decode().lower()


def _with_retries(url: str, policy: MediaPolicy, file: BinaryIO) -> None:
    """Fetch a URL into a file, again after a failure that may pass."""
    deadline = time.monotonic() + _TOTAL_SECONDS
    for pause in (*_PAUSES, None):
        try:
            _follow(url, policy, file, deadline)
            return
        except _PassingError as error:
            if pause is None or time.monotonic() + pause > deadline:
                raise MediaError("media-fetch", f"{shown(url)} cannot be fetched: {first_line(error)}") from error
            time.sleep(pause)
            file.seek(0)
            file.truncate()


def _follow(url: str, policy: MediaPolicy, file: BinaryIO, deadline: float) -> None:
    """Fetch a URL into a file, through redirects."""
    here = url
    for _ in range(_REDIRECTS + 1):
        try:
            moved = _get(_checked(here, policy), file, deadline, shown(url))
            if moved is None:
                return
            here = urljoin(here, moved)
        except (OSError, http.client.HTTPException) as error:
            late = time.monotonic() > deadline
            raise _PassingError(f"more than {_TOTAL_SECONDS:g} seconds" if late else first_line(error)) from error
        except ValueError as error:
            raise MediaError("media-fetch", f"{shown(url)} redirects to what is no URL") from error
    raise MediaError("media-fetch", f"{shown(url)} redirects more than {_REDIRECTS} times")


def _get(target: _Target, file: BinaryIO, deadline: float, name: str) -> str | None:
    """Copy what the server sends into the file, or return where it redirects to."""
    headers = {"User-Agent": "batchscore", "Accept-Encoding": "identity"}
    with _connected(target, deadline, name) as connection:
        connection.request("GET", target.path, headers=headers)
        with connection.getresponse() as answer:
            status = f"the server answers {answer.status} {answer.reason}"
            if answer.status in _PASSING:
                raise _PassingError(status)
            if answer.status in _MOVED and (moved := answer.getheader("Location")):
                return moved
            if answer.status != 200:
                raise MediaError("media-fetch", f"{name}: {status}", "is the URL right, and open to everyone?")
            if (coding := answer.getheader("Content-Encoding", "identity").lower()) != "identity":
                raise MediaError("media-fetch", f"{name}: the server sends {coding}, which it was not asked for")
            _copy(answer, file, name)
    if time.monotonic() > deadline:  # then the end that was read may be that of the connection
        raise TimeoutError
    return None


def _copy(answer: http.client.HTTPResponse, file: BinaryIO, name: str) -> None:
    """Copy the body of an answer; OSError if it ends early."""
    size = answer.length or 0  # as announced
    while size <= MAX_BYTES and (chunk := answer.read(_CHUNK)):
        file.write(chunk)
        size = max(size, file.tell())
    if size > MAX_BYTES:
        message = f"{name} has more than {MAX_BYTES >> 20} MB, the most that is fetched"
        raise MediaError("media-too-large", message, "make it smaller, or fetch it beforehand")
    if answer.length:
        raise ConnectionError(f"it ends {answer.length:,} bytes early")


@contextmanager
def _connected(target: _Target, deadline: float, name: str) -> Iterator[http.client.HTTPConnection]:
    """A connection to a public address of the host, cut at the deadline however slowly it trickles."""
    with ExitStack() as stack:
        sock = stack.enter_context(_connect(_public_addresses(target, name), target.port))
        if target.secure:
            # the handshake comes below, under the deadline too
            sock = stack.enter_context(
                _tls().wrap_socket(sock, server_hostname=target.host, do_handshake_on_connect=False)
            )
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, [sock])
        stack.callback(timer.cancel)
        timer.start()
        if isinstance(sock, ssl.SSLSocket):
            try:
                sock.do_handshake()
            except ssl.SSLCertVerificationError as error:
                raise MediaError("media-fetch", f"{name}: {error.verify_message}") from error
        kind = http.client.HTTPSConnection if target.secure else http.client.HTTPConnection
        connection = kind(target.host, target.port)  # which know what the Host header is to be
        connection.sock = sock
        yield connection


def _public_addresses(target: _Target, name: str) -> list[str]:
    """The addresses of a host; MediaError if it has none, or one that is not public."""
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise MediaError("media-fetch", f"{name}: the host {target.host} is not known") from error
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    for address in addresses:
        if not _is_public(ip_address(address)):
            message = f"{name}: {target.host} has the address {address}, which is not a public one"
            raise MediaError("media-refused", message, "fetch it beforehand, and give its path")
    return addresses


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is one of the open internet, also inside IPv6 addresses that stand for an IPv4 address."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if any(address in network for network in _TRANSLATED):
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner:
            return _is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _connect(addresses: list[str], port: int) -> socket.socket:
    """A socket to the first address that answers."""
    for number, address in enumerate(addresses, start=1):
        try:
            return socket.create_connection((address, port), timeout=_READ_SECONDS)
        except OSError:
            if number == len(addresses):
                raise
    raise ConnectionError("it has no address")


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """What certificates are checked with; loading it takes a while."""
    return ssl.create_default_context()


def _cut(sock: socket.socket) -> None:
    """End what waits for a socket; that of an SSLSocket would clear its state under the thread that waits."""
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
