"""HTTP for the registry client, over urllib3: proxies, private CAs, time-outs, plain errors."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from time import time
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import (
    HTTPError,
    LocationValueError,
    NewConnectionError,
    ProxyError,
    SSLError,
)
from urllib3.exceptions import TimeoutError as TimedOut

from pyvmm.errors import ImageError

CONNECT_TIMEOUT = 10.0  # seconds
READ_TIMEOUT = 60.0  # seconds without a byte: a caching registry fetches first, then answers

_TEXT_MAX = 200
_DISCARD_MAX = 1 << 16  # bytes
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
# What OpenSSL makes of an answer that is not TLS.
_NOT_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF_WHILE_READING"}


class Temporary(ImageError):
    """What another try may mend, not before ``after`` seconds."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class NotTls(ImageError):
    """The server does not speak TLS."""


class Http:
    """Sends requests; connections are kept, ``connections`` to each host. For several threads."""

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._heard: set[str] = set()

    def request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> BaseHTTPResponse:
        """The answer to one request, whatever its status, with the body still to be read.

        Raises NotTls, Temporary (if the host has answered before, or was slow), or ImageError.
        """
        host = urlsplit(url).netloc
        try:
            response = self._pool(url).urlopen(
                method,
                url,
                body=body,
                headers={"User-Agent": "pyvmm", "Accept-Encoding": "identity", **headers},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT),
            )
        except (HTTPError, ValueError) as error:
            raise self._failure(host, error) from None
        self._heard.add(host)
        return response

    def read(self, response: BaseHTTPResponse, url: str, most: int) -> bytes:
        """What has come of the body, at most ``most`` bytes; b"" at its end. Raises Temporary."""
        try:
            return response.read1(most)
        except (HTTPError, OSError) as error:
            raise self._failure(urlsplit(url).netloc, error) from None

    def read_all(self, response: BaseHTTPResponse, url: str, most: int) -> bytes:
        """The whole body. ImageError if it has more than ``most`` bytes."""
        data = bytearray()
        while piece := self.read(response, url, most):
            data += piece
            if len(data) > most:
                response.close()
                host = urlsplit(url).netloc
                raise ImageError(f"{host}: its answer is larger than {most} bytes")
        return bytes(data)

    def discard(self, response: BaseHTTPResponse) -> None:
        """Have done with an answer; its connection is kept if there is little left to read."""
        if response.length_remaining is not None and response.length_remaining <= _DISCARD_MAX:
            response.drain_conn()
        else:
            response.close()

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        key = f"{parts.scheme}://{parts.netloc}"
        if key not in self._pools:
            options: dict[str, Any] = {"maxsize": self._connections}
            if parts.scheme == "https":
                options["ssl_context"] = _context(parts.netloc)
            proxy = _proxy(parts.scheme, parts.netloc)
            self._pools[key] = _proxied(proxy, options) if proxy else urllib3.PoolManager(**options)
        return self._pools[key]

    def _failure(self, host: str, error: Exception) -> ImageError:
        while isinstance(error, ProxyError):
            host, error = f"{host}: the proxy", error.original_error
            if type(error) is OSError:  # http.client's, of an answer to CONNECT
                return ImageError(f"{host}: {readable(str(error))}")
        reason = error.args[0] if isinstance(error, SSLError) else None
        if isinstance(reason, ssl.SSLCertVerificationError):
            return ImageError(
                f"{host}: its certificate is not trusted: {reason.verify_message}; put its CA's "
                f"certificate into /etc/docker/certs.d/{host}/ca.crt, or name it in SSL_CERT_FILE"
            )
        if isinstance(reason, ssl.SSLError) and reason.reason in _NOT_TLS:
            if host in self._heard:
                return Temporary(f"{host}: the connection was cut")
            return NotTls(f"{host}: does not speak TLS")
        if isinstance(error, (SSLError, LocationValueError)) or not isinstance(
            error, (HTTPError, OSError)
        ):
            return ImageError(f"{host}: {readable(str(error))}")
        if isinstance(error, NewConnectionError):
            # Before it has ever answered, a mistyped name is likelier than a restart.
            text = f"{host}: cannot be reached: {_cause(error)}"
            return Temporary(text) if host in self._heard else ImageError(text)
        if isinstance(error, TimedOut):
            return Temporary(f"{host}: does not answer")
        return Temporary(f"{host}: the connection was cut")


def refusal(host: str, response: BaseHTTPResponse, detail: str) -> ImageError:
    """What to raise for an answer of a status that is not wanted."""
    text = f"{host}: answers {response.status}{detail and f': {detail}'}"
    if response.status not in _TEMPORARY:
        return ImageError(text)
    return Temporary(text, _seconds(response.headers.get("retry-after", "")))


def readable(text: str) -> str:
    """Text from outside as a short line that does nothing to a terminal."""
    return "".join(char if char.isprintable() else " " for char in text[:_TEXT_MAX]).strip()


def is_loopback(host: str) -> bool:
    """Whether a host name, with a port or without, means this machine."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _seconds(retry_after: str) -> float:
    """RFC 9110, section 10.2.3: seconds, or a date."""
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after[:9])
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time())
    except (ValueError, OverflowError):
        return 0.0


def _cause(error: NewConnectionError) -> str:
    cause = error.__cause__ or error.__context__
    text = cause.strerror if isinstance(cause, OSError) else None
    return readable(text or str(error))


def _proxy(scheme: str, host: str) -> str | None:
    """The proxy that the environment names: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY."""
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or is_loopback(host) or proxy_bypass(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _proxied(proxy: str, options: dict[str, Any]) -> urllib3.PoolManager:
    parts = urlsplit(proxy)
    if parts.scheme not in ("http", "https"):
        raise ImageError(
            f"proxy {parts.scheme}://{parts.hostname}: only http and https proxies work"
        )
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
    headers = urllib3.make_headers(proxy_basic_auth=login)
    return urllib3.ProxyManager(proxy, proxy_headers=headers, **options)


def _context(host: str) -> ssl.SSLContext:
    """The system's CAs, or SSL_CERT_FILE's, and those in certs.d for this host.

    The directories are Docker's and Podman's (containers-certs.d(5)): ``*.crt`` are CAs, and
    ``NAME.cert`` with ``NAME.key`` is the client's certificate.
    """
    context = ssl.create_default_context()
    for directory in _certificate_directories(host):
        for file in sorted(os.listdir(directory)):
            path = os.path.join(directory, file)
            try:
                if file.endswith(".crt"):
                    context.load_verify_locations(path)
                elif file.endswith(".cert"):
                    context.load_cert_chain(path, f"{path.removesuffix('.cert')}.key")
            except (OSError, ValueError) as error:
                raise ImageError(f"{path}: cannot be used: {readable(str(error))}") from None
    return context


def _certificate_directories(host: str) -> list[str]:
    if host.startswith("."):  # of a redirect, and no host
        return []
    configuration = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    roots = f"{configuration}/containers", "/etc/containers", "/etc/docker"
    return [path for root in roots if os.path.isdir(path := f"{root}/certs.d/{host}")]
