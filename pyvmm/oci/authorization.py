"""How a registry lets us in: Basic, or Bearer with a token from its token service.

RFC 7617 and RFC 6750; the exchange for a token is the distribution project's (docs/spec/auth,
token.md and oauth.md).
"""

from __future__ import annotations

import base64
import re
from threading import Lock
from urllib.parse import urlencode, urlsplit

from pyvmm.errors import ImageError
from pyvmm.oci.credentials import Credentials, find_credentials
from pyvmm.oci.fields import Fields, parse
from pyvmm.oci.http import Http, is_loopback, readable, refusal

_ANSWER_MAX = 1 << 20
_CLIENT = "pyvmm"
# A parameter with its value, quoted or not; or else a scheme.
_CHALLENGE = re.compile(r'([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]*))|([\w-]+)', re.ASCII)
_TOKEN = re.compile(r"[!-~]+")


class Authorization:
    """The Authorization header for one repository, made and renewed as the registry asks for it."""

    header = ""

    def __init__(self, http: Http, registry: str, repository: str) -> None:
        self._http = http
        self._registry = registry
        self._repository = repository
        self._lock = Lock()
        self._credentials: Credentials | None = None
        self._looked = False

    def renew(self, challenges: list[str], refused: str, plain: bool) -> None:
        """Make another header after ``refused`` was answered with these challenges.

        ``plain`` says that the registry itself speaks plain HTTP, on this machine; then its token
        service may. Raises ImageError, and Temporary if the token service is out of order.
        """
        with self._lock:
            if self.header != refused:
                return  # another thread has
            if not self._looked:
                self._credentials = find_credentials(self._registry, self._repository)
                self._looked = True
            schemes = _parse(challenges)
            if "bearer" in schemes:
                self.header = f"Bearer {self._token(schemes['bearer'], plain)}"
            elif "basic" in schemes:
                self.header = self._basic(refused)
            else:
                raise ImageError(f"{self._registry}: asks for a login of an unknown kind")

    def _basic(self, refused: str) -> str:
        found = self._credentials
        if not found or not found.user:
            raise self._needs_login()
        if refused:
            raise self._refuses(found)
        return _basic(found)

    def _needs_login(self) -> ImageError:
        return ImageError(
            f"{self._registry}: needs a login: use `docker login {self._registry}` or "
            f"`podman login {self._registry}`"
        )

    def _refuses(self, found: Credentials) -> ImageError:
        return ImageError(f"{self._registry}: refuses the login of {found.where}")

    def _token(self, challenge: dict[str, str], plain: bool) -> str:
        realm = challenge.get("realm", "")
        try:
            where = urlsplit(realm)
        except ValueError as error:
            raise ImageError(
                f"{self._registry}: its token service {readable(realm)!r} is no URL: {error}"
            ) from None
        local = plain and where.scheme == "http" and is_loopback(where.netloc)
        if where.scheme != "https" and not local:
            raise ImageError(
                f"{self._registry}: its token service {readable(realm)!r} is not https"
            )
        fields = {
            "service": challenge.get("service", ""),
            "scope": challenge.get("scope") or f"repository:{self._repository}:pull",
        }
        found = self._credentials
        if found and found.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": found.identity_token,
                "client_id": _CLIENT,
                **fields,
            }
            response = self._http.request(
                "POST",
                realm,
                {"Content-Type": "application/x-www-form-urlencoded"},
                urlencode(form).encode(),
            )
        else:
            url = f"{realm}{'&' if where.query else '?'}{urlencode(fields)}"
            headers = {"Authorization": _basic(found)} if found else {}
            response = self._http.request("GET", url, headers)
        data = self._http.read_all(response, realm, _ANSWER_MAX)
        name = f"token service {where.netloc}"
        if response.status in (400, 401, 403):
            raise self._refuses(found) if found else self._needs_login()
        if response.status != 200:
            raise refusal(name, response, "")
        answer = Fields(parse(data, name), name)
        token = answer.text("token") or answer.text("access_token")
        if not _TOKEN.fullmatch(token):
            raise ImageError(f"{name}: gives no token")
        return token


def _basic(found: Credentials) -> str:
    return f"Basic {base64.b64encode(f'{found.user}:{found.password}'.encode()).decode()}"


def _parse(challenges: list[str]) -> dict[str, dict[str, str]]:
    """The parameters of each scheme in WWW-Authenticate headers (RFC 9110, section 11.6.1)."""
    schemes: dict[str, dict[str, str]] = {}
    parameters: dict[str, str] = {}
    for text in challenges:
        for name, quoted, word, scheme in _CHALLENGE.findall(text):
            if scheme:
                parameters = schemes.setdefault(scheme.lower(), {})
            else:
                parameters[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) or word
    return schemes
