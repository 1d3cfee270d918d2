"""Servers for the pull's tests, all on loopback: Debian's docker-registry in its ways of letting
people in, a token service for it, and a server before it that breaks things.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD = "somebody", "secret word"
# Of PASSWORD, by libcrypt; docker-registry takes nothing but bcrypt, which Python does not have.
HTPASSWD = f"{USER}:$2b$04$sIzocJTY9iFZS4iloQ0ZZeVWFWxQ6ZpqmxIf6y1Xvnb1tDJF4wYTq\n"


def openssl(*arguments: str | Path, data: bytes | None = None) -> bytes:
    done = subprocess.run(["openssl", *map(str, arguments)], input=data, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@dataclass
class Certificates:
    """A CA of our own, and certificates that it signed."""

    path: Path

    def __post_init__(self) -> None:
        self.ca = self.path / "ca.crt"
        self._make("ca", "/CN=pyvmm test CA")
        self.server = self._signed(
            "server", "subjectAltName=DNS:localhost,DNS:registry.invalid,IP:127.0.0.1"
        )
        self.client = self._signed("client", "extendedKeyUsage=clientAuth")

    def _make(self, name: str, subject: str) -> None:
        openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", subject),
            *("-keyout", self.path / f"{name}.key", "-out", self.path / f"{name}.crt"),
        )

    def _signed(self, name: str, extension: str) -> Path:
        made = self.path / f"{name}.crt"
        request = openssl(
            *("req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", self.path / f"{name}.key"),
        )
        (self.path / "extensions").write_text(extension)
        openssl(
            *("x509", "-req", "-days", "3650", "-CA", self.ca, "-CAkey", self.path / "ca.key"),
            *("-CAcreateserial", "-extfile", self.path / "extensions", "-out", made),
            data=request,
        )
        return made


class Registry:
    """A docker-registry; ``more`` is of its configuration."""

    def __init__(self, path: Path, more: dict[str, Any] | None = None) -> None:
        more = more or {}
        configuration = {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(path)}},
            **more,
            "http": {"addr": "127.0.0.1:0", **more.get("http", {})},
        }
        path.mkdir()
        (path / "config.yml").write_text(json.dumps(configuration))  # which is YAML as well
        with open(path / "log", "wb") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(path / "config.yml")], stdout=log, stderr=log
            )
        self.port = self._listening(path / "log")
        self.host = f"localhost:{self.port}"

    def _listening(self, log: Path) -> int:
        """The port that it has chosen, once it listens there."""
        deadline = time.monotonic() + 60
        while not (found := re.search(r'listening on 127\.0\.0\.1:(\d+)[",]', log.read_text())):
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        return int(found[1])

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def push(self, source: str | Path, name: str, *options: str) -> str:
        """Copy an image by skopeo; return its reference."""
        reference = f"{self.host}/{name}"
        done = subprocess.run(
            [
                *("skopeo", "copy", "--quiet", "--dest-tls-verify=false", *options),
                *(f"oci:{source}", f"docker://{reference}"),
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return reference


@dataclass
class Request:
    """One that a server got, and the number of bytes of the body that it answered with: counted
    before they leave, since whoever has them may look.
    """

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


class Server:
    """An HTTP server whose handler is ``answer``; ``requests`` are those it got."""

    def __init__(self, answer: Callable[[Handler, Request], None]) -> None:
        self.requests: list[Request] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.answer = lambda handler, request: (  # type: ignore[attr-defined]
            self.requests.append(request),
            answer(handler, request),
        )
        self.port = self._server.server_port
        self.host = f"localhost:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        try:
            self.server.answer(self, request)  # type: ignore[attr-defined]
        except ConnectionError:
            self.close_connection = True

    do_POST = do_GET

    def reply(self, request: Request, status: int, body: bytes, **headers: str) -> None:
        self.head(request, status, {"Content-Length": str(len(body)), **headers})
        request.sent += len(body)
        self.wfile.write(body)

    def head(self, request: Request, status: int, headers: dict[str, str]) -> None:
        request.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class TokenService(Server):
    """Signs tokens for docker-registry: for anybody to pull, for USER to push as well."""

    refresh_token = "a refresh token"

    def __init__(self, certificates: Certificates, anonymous: bool = True) -> None:
        super().__init__(self._answer)
        self._certificates = certificates
        self._anonymous = anonymous
        self.lifetime = 300
        self.forms: list[dict[str, str]] = []

    def configuration(self) -> dict[str, Any]:
        return {
            "auth": {
                "token": {
                    "realm": f"http://{self.host}/token",
                    "service": "the registry",
                    "issuer": "the issuer",
                    "rootcertbundle": str(self._certificates.ca),
                }
            }
        }

    def _answer(self, handler: Handler, request: Request) -> None:
        text = urlsplit(handler.path).query
        if request.method == "POST":
            text = handler.rfile.read(int(request.headers["content-length"])).decode()
        form = {name: values[0] for name, values in parse_qs(text).items()}
        self.forms.append(form)
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        known = (
            form.get("refresh_token") == self.refresh_token
            or request.headers.get("authorization") == f"Basic {login}"
        )
        if not known and ("authorization" in request.headers or not self._anonymous):
            handler.reply(request, 401, b"{}")
            return
        _, name, actions = form["scope"].split(":")
        granted = [each for each in actions.split(",") if known or each == "pull"]
        token = self._sign({"type": "repository", "name": name, "actions": granted})
        key = "access_token" if request.method == "POST" else "token"
        handler.reply(request, 200, json.dumps({key: token}).encode())

    def _sign(self, access: dict[str, Any]) -> str:
        der = openssl("x509", "-in", self._certificates.server, "-outform", "DER")
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        now = int(time.time())
        claims = {
            "iss": "the issuer", "sub": "", "aud": "the registry", "exp": now + self.lifetime,
            "nbf": now - 10, "iat": now, "jti": os.urandom(8).hex(), "access": [access],
        }  # fmt: skip
        parts = [_base64(json.dumps(part).encode()) for part in (header, claims)]
        key = self._certificates.path / "server.key"
        signature = openssl("dgst", "-sha256", "-sign", key, data=".".join(parts).encode())
        return ".".join([*parts, _base64(signature)])


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class Fault:
    """What goes wrong with a request whose path has ``path`` in it, ``times`` times."""

    path: str
    times: int = 1
    status: int = 0  # answered in place of the registry's
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int = -1  # bytes of the body after which the connection is closed
    stalls: bool = False  # nothing comes any more at ``cut``, and it stays open
    flip: int = -1  # the byte that is changed
    extra: int = 0  # bytes more, or fewer, than there should be
    unsaid: bool = False  # no Content-Length
    chunked: bool = False  # Transfer-Encoding
    no_range: bool = False


class Front(Server):
    """Stands before a registry, counts what it answers, and has faults."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(self._answer)
        self._registry = registry
        self.faults: list[Fault] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.delay = 0.0  # seconds before each 64 KiB

    def stop(self) -> None:
        self._over.set()
        super().stop()

    def sent(self, digest: str) -> int:
        """How many bytes of a blob left here."""
        return sum(each.sent for each in self.requests if each.path.endswith(digest))

    def _fault(self, path: str) -> Fault:
        with self._lock:
            for fault in self.faults:
                if fault.path in path and fault.times:
                    fault.times -= 1
                    return fault
        return Fault("")

    def _answer(self, handler: Handler, request: Request) -> None:
        fault = self._fault(request.path)
        if fault.status:
            handler.reply(request, fault.status, fault.body, **fault.headers)
            return
        headers = {k: v for k, v in request.headers.items() if k != "host"}
        if fault.no_range:
            headers.pop("range", None)
        upstream = http.client.HTTPConnection("127.0.0.1", self._registry.port)
        upstream.request("GET", request.path, headers=headers)
        response = upstream.getresponse()
        body = response.read()
        upstream.close()
        if fault.flip >= 0:
            body = body[: fault.flip] + bytes([body[fault.flip] ^ 1]) + body[fault.flip + 1 :]
        body = body + bytes(fault.extra) if fault.extra >= 0 else body[: fault.extra]
        passed = {k: v for k, v in response.getheaders() if k.lower() != "content-length"}
        passed.update(fault.headers)
        if fault.chunked:
            passed["Transfer-Encoding"] = "chunked"
        elif fault.unsaid:
            passed["Connection"] = "close"
            handler.close_connection = True
        else:
            passed["Content-Length"] = str(len(body))
        handler.head(request, response.status, passed)
        self._send(handler, request, body, fault)

    def _send(self, handler: Handler, request: Request, body: bytes, fault: Fault) -> None:
        for start in range(0, len(body), 1 << 16):
            piece = body[start : start + (1 << 16)]
            if 0 <= fault.cut < start + len(piece):
                piece = piece[: fault.cut - start]
            time.sleep(self.delay)
            request.sent += len(piece)
            if fault.chunked:
                handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            else:
                handler.wfile.write(piece)
            if 0 <= fault.cut <= request.sent:
                if fault.stalls:
                    self._over.wait()
                handler.close_connection = True
                return
        if fault.chunked:
            handler.wfile.write(b"0\r\n\r\n")
