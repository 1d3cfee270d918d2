"""One repository of a registry, as a pull needs it (distribution-spec, "Pull")."""

from __future__ import annotations

import re
from types import TracebackType
from urllib.parse import urljoin, urlsplit

from urllib3 import BaseHTTPResponse

from pyvmm.errors import ImageError
from pyvmm.oci.authorization import Authorization
from pyvmm.oci.blob import checked_digest
from pyvmm.oci.fields import DOCUMENT_MAX, Fields, parse
from pyvmm.oci.http import Http, NotTls, is_loopback, readable, refusal
from pyvmm.oci.reference import DEFAULT_REGISTRY, Reference
from pyvmm.record import Record

MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_HUB = "registry-1.docker.io"
_REDIRECTS_MAX = 10
_LOGINS_MAX = 2  # a token may have run out, and its successor be too short-lived once
_REDIRECTS = {301, 302, 303, 307, 308}
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)", re.ASCII)


class Manifest(Record):
    """A manifest or index as it came: ``digest`` is what the registry said, "" if it did not."""

    data: bytes
    media_type: str
    digest: str


class Body:
    """A blob's bytes on their way, from ``start`` on: ``length`` of them, if the server says it."""

    def __init__(self, http: Http, response: BaseHTTPResponse, url: str, start: int) -> None:
        self._http = http
        self._response = response
        self._url = url
        self.start = start
        length = response.headers.get("content-length", "")
        self.length = int(length[:18]) if length.isascii() and length.isdecimal() else None

    def read(self, most: int) -> bytes:
        """Some bytes, b"" at the end. Raises Temporary."""
        return self._http.read(self._response, self._url, most)

    def __enter__(self) -> Body:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Read to the end, the connection is kept; what is left over would be the next answer.
        if error:
            self._response.close()
        else:
            self._response.release_conn()


class Registry:
    """The repository of ``reference``. Its methods make one try each, and raise Temporary if
    another may do. For several threads.
    """

    def __init__(self, reference: Reference, connections: int) -> None:
        self._name = str(reference)
        self._repository = reference.repository
        self._host = _HUB if reference.registry == DEFAULT_REGISTRY else reference.registry
        self._scheme = "https"
        self._http = Http(connections)
        self._authorization = Authorization(self._http, reference.registry, reference.repository)

    def manifest(self, reference: str) -> Manifest:
        """The manifest or index of a tag or digest; not verified."""
        path = f"/v2/{self._repository}/manifests/{reference}"
        response, url = self._get(path, {"Accept": ", ".join(MANIFEST_TYPES)})
        if response.status != 200:
            raise self._refusal(response, url, "such image")
        data = self._http.read_all(response, url, DOCUMENT_MAX)
        digest = response.headers.get("docker-content-digest", "")
        if digest:
            checked_digest(digest, f"{self._name}: {self._host}")
        media_type = response.headers.get("content-type", "").partition(";")[0].strip()
        return Manifest(data, media_type, digest)

    def blob(self, digest: str, offset: int) -> Body:
        """A blob, from ``offset`` on if the server does that; see ``start`` of the answer."""
        path = f"/v2/{self._repository}/blobs/{digest}"
        response, url = self._get(path, {"Range": f"bytes={offset}-"} if offset else {})
        if offset and response.status == 206:
            found = _RANGE.fullmatch(response.headers.get("content-range", ""))
            if found and int(found[1]) == offset:
                return Body(self._http, response, url, offset)
        if offset and response.status in (206, 416):
            self._http.discard(response)
            return self.blob(digest, 0)
        if response.status != 200:
            raise self._refusal(response, url, f"blob {digest}")
        return Body(self._http, response, url, 0)

    def _get(self, path: str, headers: dict[str, str]) -> tuple[BaseHTTPResponse, str]:
        """The answer, and the address that it is from, after logins and redirects."""
        for _ in range(_LOGINS_MAX):
            login = self._authorization.header
            response, url = self._follow(path, headers, login)
            if response.status != 401 or not self._is_ours(url):
                return response, url
            challenges = response.headers.getlist("www-authenticate")
            self._http.discard(response)
            self._authorization.renew(challenges, login, self._scheme == "http")
        return self._follow(path, headers, self._authorization.header)

    def _follow(
        self, path: str, headers: dict[str, str], login: str
    ) -> tuple[BaseHTTPResponse, str]:
        url = f"{self._scheme}://{self._host}{path}"
        for _ in range(_REDIRECTS_MAX):
            if not self._is_ours(url):
                login = ""  # for this host, and for ours if it sends us back
            try:
                sent = {**headers, "Authorization": login} if login else headers
                response = self._http.request("GET", url, sent)
            except NotTls:
                # As Docker: plain HTTP, but nowhere else than on this machine.
                if login or not self._is_ours(url) or not is_loopback(self._host):
                    raise
                self._scheme = "http"
                url = f"http://{self._host}{path}"
                continue
            target = response.headers.get("location")
            if response.status not in _REDIRECTS or not target:
                return response, url
            self._http.discard(response)
            url = self._redirected(url, target)
        raise ImageError(f"{self._name}: {self._host} redirects more than {_REDIRECTS_MAX} times")

    def _is_ours(self, url: str) -> bool:
        return urlsplit(url)[:2] == (self._scheme, self._host)

    def _redirected(self, url: str, target: str) -> str:
        try:
            target = urljoin(url, target)
            parts = urlsplit(target)
        except ValueError as error:
            raise ImageError(
                f"{self._name}: {self._host} redirects to {readable(target)!r}: {error}"
            ) from None
        if parts.scheme not in ("https", self._scheme) or not parts.netloc or "@" in parts.netloc:
            raise ImageError(f"{self._name}: {self._host} redirects to {readable(target)!r}")
        return target

    def _refusal(self, response: BaseHTTPResponse, url: str, what: str) -> ImageError:
        host = urlsplit(url).netloc
        data = self._http.read_all(response, url, DOCUMENT_MAX)
        try:
            errors = Fields(parse(data, host), host).objects("errors")
            detail = readable(errors[0].text("message")) if errors else ""
        except ImageError:
            detail = ""
        if self._is_ours(url) and response.status in (401, 403):
            why = detail or "no reason given"
            return ImageError(
                f"{self._name}: {host} denies access ({why}): check the name, or log in with "
                f"`docker login` or `podman login`"
            )
        if self._is_ours(url) and response.status == 404:
            return ImageError(f"{self._name}: {host} has no {what}{detail and f' ({detail})'}")
        return refusal(f"{self._name}: {host}", response, detail)
