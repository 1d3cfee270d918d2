"""Logins for registries, where Docker and Podman keep them (containers-auth.json(5))."""

from __future__ import annotations

import base64
import binascii
import os
import subprocess

from pyvmm.errors import ImageError
from pyvmm.oci.fields import DOCUMENT_MAX, Fields, parse
from pyvmm.oci.http import readable
from pyvmm.record import Record

_HUB = "docker.io"
_HUB_KEY = "https://index.docker.io/v1/"  # where `docker login` has put Docker Hub's since ever
_HELPER_TIMEOUT = 60.0  # seconds; it may ask for a password
_IDENTITY = "<token>"  # a helper's user name, if the secret is an identity token


class Credentials(Record):
    """A user and password, or an identity token. ``where`` they are from is for messages."""

    where: str
    user: str = ""
    password: str = ""
    identity_token: str = ""


def find_credentials(registry: str, repository: str) -> Credentials | None:
    """The login for a repository, or None if there is none. Raises ImageError.

    The longest prefix of ``registry/repository`` that a file knows counts, in the first file that
    knows one.
    """
    for path in _files():
        try:
            with open(path, "rb") as file:
                data = file.read(DOCUMENT_MAX)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ImageError(f"{path}: cannot be read: {error.strerror}") from None
        found = _look_up(Fields(parse(data, path), path), registry, repository)
        if found:
            return found
    return None


def _files() -> list[str]:
    """In the order that counts: named by a variable, then Podman's, then Docker's."""
    environment = os.environ
    if "REGISTRY_AUTH_FILE" in environment:
        return [environment["REGISTRY_AUTH_FILE"]]
    home = os.path.expanduser("~")
    docker = environment.get("DOCKER_CONFIG")
    runtime = environment.get("XDG_RUNTIME_DIR")
    # Without a session, as root's in CI, Podman has another place.
    containers = f"{runtime}/containers" if runtime else f"/run/containers/{os.geteuid()}"
    configuration = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
    return [
        *([f"{docker}/config.json"] if docker else []),
        f"{containers}/auth.json",
        f"{configuration}/containers/auth.json",
        *([] if docker else [f"{home}/.docker/config.json"]),
    ]


def _look_up(file: Fields, registry: str, repository: str) -> Credentials | None:
    helpers = file.object("credHelpers")
    auths = file.object("auths")
    for key in _keys(registry, ""):
        if key in helpers:
            return _ask(helpers.text(key), registry, file.where)
    for key in _keys(registry, repository):
        if key in auths:
            found = _entry(auths.object(key), file.where)
            if found:  # with a helper for all, Docker leaves empty entries
                return found
    helper = file.text("credsStore")
    return _ask(helper, registry, file.where) if helper else None


def _keys(registry: str, repository: str) -> list[str]:
    """From the most special one on. Docker itself has written hosts in many ways over the years."""
    parts = [registry, *repository.split("/")] if repository else [registry]
    keys = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
    if registry == _HUB:
        return [*keys, _HUB_KEY, "index.docker.io", "registry-1.docker.io"]
    hosts = [f"{scheme}{registry}" for scheme in ("", "https://", "http://")]
    return keys + [f"{host}{path}" for host in hosts for path in ("", "/", "/v1/", "/v2/")]


def _entry(fields: Fields, where: str) -> Credentials | None:
    token = fields.text("identitytoken")
    if token:
        return Credentials(where, identity_token=token)
    text = fields.text("auth")
    if not text:
        return None
    try:
        user, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        raise ImageError(f"{fields.where}: 'auth' is not the base64 of USER:PASSWORD; log in again")
    return Credentials(where, user, password.rstrip("\0"))


def _ask(helper: str, registry: str, where: str) -> Credentials | None:
    """Ask a credential helper: `docker-credential-NAME get`, the server's name on its input."""
    if os.path.basename(helper) != helper:
        raise ImageError(f"{where}: {helper!r} is no name of a credential helper")
    program = f"docker-credential-{helper}"
    for server in (_HUB_KEY, _HUB) if registry == _HUB else (registry, f"https://{registry}"):
        try:
            done = subprocess.run(
                [program, "get"],
                input=server.encode(),
                capture_output=True,
                timeout=_HELPER_TIMEOUT,
            )
        except FileNotFoundError:
            raise ImageError(f"{where}: names {program}, which is not in PATH") from None
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ImageError(f"{program}: {readable(str(error))}") from None
        if done.returncode == 0:
            answer = Fields(parse(done.stdout, program), program)
            user, secret = answer.text("Username"), answer.text("Secret")
            if user == _IDENTITY:
                return Credentials(program, identity_token=secret)
            return Credentials(program, user, secret)
        if b"credentials not found" not in done.stdout:
            text = readable((done.stdout or done.stderr).decode(errors="replace"))
            raise ImageError(f"{program}: {text or f'ended with {done.returncode}'}")
    return None
