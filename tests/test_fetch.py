"""Media behind URLs, from a server on this machine: what is fetched, how often, and what is refused."""

from __future__ import annotations

import gzip
import http.server
import ipaddress
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

from batchscore.errors import InputError
from batchscore.media import fetch
from batchscore.media.find import MediaError, MediaFinder
from batchscore.media.policy import MediaPolicy
from batchscore.media.stored import pack, unpack
from media_files import GREEN, saved

IMAGE = saved(Image.new("RGB", (3, 2), GREEN))
REMOTE = MediaPolicy(allow_remote=True)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: ClassVar[Counter[str]] = Counter()
    headers_seen: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        self.headers_seen.append(dict(self.headers))
        name, _, argument = self.path.lstrip("/").partition("/")
        getattr(self, f"get_{name}", self.get_image)(argument)

    def get_image(self, argument: str, status: int = 200, data: bytes = IMAGE, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers and "Transfer_Encoding" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def get_status(self, argument: str) -> None:
        self.get_image("", int(argument), b"no")

    def get_flaky(self, argument: str) -> None:
        self.get_image("", 200 if self.asked[self.path] > int(argument) else 503)

    def get_hop(self, argument: str) -> None:
        self.get_image("", 302, b"", Location=f"/hop/{int(argument) - 1}" if argument != "1" else "/image")

    def get_to(self, argument: str) -> None:
        self.get_image("", 301, b"", Location=argument)

    def get_chunked(self, argument: str) -> None:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(IMAGE), IMAGE)
        self.get_image("", data=body, Transfer_Encoding="chunked")

    def get_zipped(self, argument: str) -> None:
        self.get_image("", data=gzip.compress(IMAGE), Content_Encoding="gzip")

    def get_short(self, argument: str) -> None:
        self.get_image("", data=IMAGE[:20], Content_Length=str(len(IMAGE)))
        self.close_connection = True

    def get_announced(self, argument: str) -> None:
        self.get_image("", data=b"", Content_Length=argument)
        self.close_connection = True

    def get_endless(self, argument: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        while True:
            self.wfile.write(bytes(1 << 16))

    def get_trickle(self, argument: str) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 500:
            self.wfile.write(bytes([byte]))
            time.sleep(0.02)

    def log_message(self, *args: object) -> None: ...

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # the other side has heard enough


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(fetch, "_is_public", lambda address: str(address) == "127.0.0.1")
    monkeypatch.setattr(fetch, "_PAUSES", (0.0, 0.0))
    fetch._files.cache_clear()
    Handler.asked.clear()
    Handler.headers_seen.clear()
    with serving() as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server on this port of 127.0.0.1."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "path", ["/image", "", "/a b/é.png?x=ü&y=%20#part", "/hop/3", "/chunked", "/to//image", "/flaky/2"]
)
def test_a_url_is_fetched(server: str, path: str) -> None:
    media = MediaFinder(REMOTE).image(server + path)

    assert (media.width, media.height) == (3, 2)
    assert media.source.frames((0,), on_white=False)[0].getpixel((0, 0)) == GREEN


def test_a_url_is_fetched_once_a_process(server: str) -> None:
    media = MediaFinder(REMOTE).image(f"{server}/image")

    again = unpack(pack(media), REMOTE)
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda _: MediaFinder(REMOTE).image(f"{server}/image"), range(16)))
        list(threads.map(lambda _: again.source.frames((0,), on_white=False), range(16)))

    assert found == {media, again}
    assert Handler.asked == {"/image": 1}


def test_what_no_longer_fits_on_disk_is_fetched_again(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_KEPT_BYTES", 2 * len(IMAGE))
    found = [MediaFinder(REMOTE).image(f"{server}/image/{number}") for number in range(3)]

    for media in found:
        media.source.frames((0,), on_white=False)

    assert Handler.asked == {"/image/0": 2, "/image/1": 2, "/image/2": 2}


def test_a_url_that_fails_is_asked_once_a_finder(server: str) -> None:
    finder = MediaFinder(REMOTE)
    for _ in range(3):
        with pytest.raises(MediaError, match="404 Not Found"):
            finder.image(f"{server}/status/404")

    assert Handler.asked == {"/status/404": 1}


def test_neither_credentials_nor_cookies_are_sent(server: str) -> None:
    MediaFinder(REMOTE).image(server.replace("//", "//user:secret@") + "/image")

    assert {name.lower() for name in Handler.headers_seen[0]} == {"host", "user-agent", "accept-encoding"}


def test_proxies_of_the_environment_are_not_used(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    assert MediaFinder(REMOTE).image(f"{server}/image").width == 3


@pytest.mark.parametrize(
    ("path", "code", "words", "times"),
    [
        ("/status/404", "media-fetch", "answers 404 Not Found", 1),
        ("/status/403", "media-fetch", "answers 403 Forbidden", 1),
        ("/status/206", "media-fetch", "answers 206", 1),
        ("/status/503", "media-fetch", "answers 503 Service Unavailable", 3),
        ("/status/429", "media-fetch", "answers 429 Too Many Requests", 3),
        ("/short", "media-fetch", "bytes early", 3),
        ("/hop/4", "media-fetch", "redirects more than 3 times", 1),
        ("/zipped", "media-fetch", "sends gzip", 1),
        ("/announced/999999999999", "media-too-large", "more than 1 MB", 1),
        ("/endless", "media-too-large", "more than 1 MB", 1),
        ("/to/http://10.0.0.1/a.png", "media-refused", "has the address 10.0.0.1", 1),
        ("/to/http://[::1]/a.png", "media-refused", "has the address ::1", 1),
        ("/to/file:///etc/hostname", "media-refused", "is not a URL of http or https", 1),
        ("/to/ftp://example.org/a.png", "media-refused", "is not a URL of http or https", 1),
        ("/to/http://[/a.png", "media-fetch", "redirects to what is no URL", 1),
    ],
)
def test_what_a_server_does_not_give_is_a_fault(
    server: str, path: str, code: str, words: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 1 << 20)

    with pytest.raises(MediaError) as caught:
        MediaFinder(REMOTE).image(server + path)

    assert (caught.value.fault.code, words in caught.value.fault.message) == (code, True), caught.value.fault
    assert Handler.asked[path] == times


def test_a_server_that_trickles_is_cut_off(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_TOTAL_SECONDS", 0.3)
    began = time.monotonic()

    with pytest.raises(MediaError, match="more than 0.3 seconds"):
        MediaFinder(REMOTE).image(f"{server}/trickle")

    assert time.monotonic() - began < 5


def test_a_server_that_is_silent_is_given_up(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_READ_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(MediaError, match="timed out"):
        MediaFinder(REMOTE).image(f"http://127.0.0.1:{silent.getsockname()[1]}/")


def test_a_redirect_leaves_the_allowed_domains_no_more_than_a_row(server: str) -> None:
    finder = MediaFinder(MediaPolicy(allow_remote=True, domains=("127.0.0.1",)))

    assert finder.image(f"{server}/image").width == 3
    for path in ("/to/http://localhost/a.png", "/to///localhost/a.png"):
        with pytest.raises(MediaError, match="localhost is not among the allowed domains"):
            finder.image(server + path)


DOMAINS = ("example.org", "Bücher.example")


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://example.org/a", True),
        ("HTTPS://EXAMPLE.ORG:8443/a", True),
        ("http://example.org./a", True),
        ("http://xn--bcher-kva.example/a", True),
        ("http://BÜCHER.example/a", True),
        ("http://user@example.org/a", True),
        ("http://www.example.org/a", False),
        ("http://example.org.evil.net/a", False),
        ("http://example.org@evil.net/a", False),
        ("http://evil.net#@example.org/a", False),
        ("http://evil.net/?example.org", False),
        ("http://evil.net\\@example.org/a", True),  # taken apart once: it is example.org that is asked
        ("http://ｅxample.org/a", True),  # as browsers read it
    ],
)
def test_allowed_domains_are_exact(url: str, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def resolve(host: str, port: int, **_: object) -> list[object]:
        asked.append(host)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(MediaError) as caught:
        MediaFinder(MediaPolicy(allow_remote=True, domains=DOMAINS)).image(url)

    assert ("is not known" in caught.value.fault.message) is allowed
    assert set(asked) <= {"example.org", "xn--bcher-kva.example"}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://", "is not a URL of http or https"),
        ("http:///a.png", "is not a URL of http or https"),
        ("http://a:99999/", "is not a URL"),
        ("http://a:b/", "is not a URL"),
        ("http://[::1/", "is not a URL"),
        ("http://a..b/", "is not a URL"),
        (f"http://{'a' * 70}/", "is not a URL"),
        ("http://127.0.0.1/", "has the address 127.0.0.1"),
        ("http://2130706433/", "has the address 127.0.0.1"),
        ("http://0x7f.1/", "has the address 127.0.0.1"),
        ("http://localhost:8000/", "which is not a public one"),
        ("http://169.254.169.254/latest/meta-data", "has the address 169.254.169.254"),
        ("https://[::ffff:10.0.0.1]/", "which is not a public one"),
    ],
)
def test_hosts_that_are_none_or_private_are_refused(url: str, words: str) -> None:
    with pytest.raises(MediaError) as caught:
        MediaFinder(REMOTE).image(url)

    assert words in caught.value.fault.message


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True), ("2606:2800:220:1::1", True), ("::ffff:93.184.216.34", True),
        ("64:ff9b::5db8:d822", True),
        ("127.0.0.1", False), ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False), ("100.64.0.1", False),
        ("169.254.169.254", False), ("0.0.0.0", False), ("224.0.0.1", False), ("240.0.0.1", False),
        ("255.255.255.255", False), ("::", False), ("::1", False), ("fe80::1", False), ("fe80::1%lo", False),
        ("fc00::1", False), ("fec0::1", False), ("ff02::1", False), ("ff0e::1", False), ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False), ("64:ff9b:1::a00:1", False), ("2002:7f00:1::", False), ("2001:db8::1", False),
    ],
)  # fmt: skip
def test_addresses_are_public_or_not(address: str, public: bool) -> None:
    assert fetch._is_public(ipaddress.ip_address(address)) is public


def test_the_connection_goes_to_the_address_that_was_checked(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers anew, with an address within, is not asked again."""
    answers = iter(["127.0.0.1"])
    resolve = socket.getaddrinfo

    def rebind(host: str, port: int, *args: object, **options: object) -> object:
        return resolve(next(answers) if host == "rebinding.example" else host, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebind)

    media = MediaFinder(REMOTE).image(server.replace("127.0.0.1", "rebinding.example") + "/image")

    assert media.width == 3
    assert Handler.headers_seen[0]["Host"].startswith("rebinding.example:")


def test_one_private_address_among_public_ones_refuses_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(2, 1, 6, "", (address, 80)) for address in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)

    with pytest.raises(MediaError, match="two.example has the address 10.0.0.1"):
        MediaFinder(REMOTE).image("http://two.example/a.png")


def test_what_is_on_disk_is_not_given_against_the_policy(server: str) -> None:
    media = MediaFinder(REMOTE).image(f"{server}/image")

    with pytest.raises(InputError, match="is not on this machine"):
        unpack(pack(media), MediaPolicy()).source.frames((0,), on_white=False)


def test_fetched_files_go_with_the_process(server: str) -> None:
    code = (
        "import os, sys\n"
        "from batchscore.media import fetch\n"
        "from batchscore.media.find import MediaFinder\n"
        "from batchscore.media.policy import MediaPolicy\n"
        "fetch._is_public = lambda address: True\n"
        "MediaFinder(MediaPolicy(allow_remote=True)).image(sys.argv[1])\n"
        "folder = fetch._files(os.getpid())._folder\n"
        "print(folder, len(os.listdir(folder)))"
    )
    run = subprocess.run([sys.executable, "-c", code, f"{server}/image"], capture_output=True, text=True, check=True)
    folder, files = run.stdout.split()

    assert files == "1"
    assert not Path(folder).exists()


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 by nobody, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "certificate.pem"
    path.write_bytes(key.private_bytes(*form) + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.mark.parametrize("trusted", [True, False])
def test_certificates_are_checked(trusted: bool, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    if trusted:
        monkeypatch.setattr(fetch, "_tls", lambda: ssl.create_default_context(cafile=str(path)))
    with serving(context) as port:
        finder = MediaFinder(REMOTE)
        if trusted:
            assert finder.image(f"https://127.0.0.1:{port}/image").width == 3
            return
        with pytest.raises(MediaError, match="self-signed certificate"):
            finder.image(f"https://127.0.0.1:{port}/image")
