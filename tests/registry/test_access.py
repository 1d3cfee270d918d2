"""Who may pull, and what is said to whom: TLS, logins, tokens, redirects, proxies."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pulling import blobs, get, refused, two_layers
from servers import (
    HTPASSWD,
    PASSWORD,
    USER,
    Certificates,
    Fault,
    Front,
    Handler,
    Registry,
    Request,
    Server,
    TokenService,
)

from pyvmm.errors import ImageError
from pyvmm.oci import registry as registry_module
from pyvmm.oci.authorization import Authorization, _parse
from pyvmm.oci.credentials import Credentials, find_credentials
from pyvmm.oci.http import Http, is_loopback
from pyvmm.oci.reference import parse_reference
from pyvmm.oci.store import Store

LOGIN = {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
WRONG = {"auth": base64.b64encode(f"{USER}:wrong".encode()).decode()}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("access") / "image"
    two_layers(path, 100_000)
    return path


def docker_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **content: Any) -> str:
    """Docker's file; returns its path."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return write(tmp_path / "docker" / "config.json", content)


def write(path: Path, content: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


# TLS


@pytest.fixture(scope="module")
def tls(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates, image: Path
) -> Iterator[Registry]:
    files = {"certificate": certificates.server, "key": certificates.server.with_suffix(".key")}
    made = {"tls": {name: str(path) for name, path in files.items()}}
    started = Registry(tmp_path_factory.mktemp("tls") / "data", {"http": made})
    started.push(image, "image:1")
    yield started
    started.stop()


def test_unknown_ca(tls: Registry, store: Store) -> None:
    assert refused(store, f"{tls.host}/image:1") == (
        f"{tls.host}: its certificate is not trusted: unable to get local issuer certificate; put "
        f"its CA's certificate into /etc/docker/certs.d/{tls.host}/ca.crt, or name it in "
        "SSL_CERT_FILE"
    )


def test_ca_by_variable(
    tls: Registry, store: Store, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
    get(store, f"{tls.host}/image:1")


def certificate_directory(host: str) -> Path:
    path = Path(os.environ["HOME"], ".config", "containers", "certs.d", host)
    path.mkdir(parents=True)
    return path


def test_ca_by_directory(tls: Registry, store: Store, certificates: Certificates) -> None:
    directory = certificate_directory(tls.host)
    (directory / "ca.crt").write_text("rubbish")
    assert refused(store, f"{tls.host}/image:1").startswith(f"{directory}/ca.crt: cannot be used: ")
    shutil.copy(certificates.ca, directory / "ca.crt")
    get(store, f"{tls.host}/image:1")


def test_wrong_host_name(tls: Registry, store: Store, certificates: Certificates) -> None:
    host = f"127.0.0.2:{tls.port}"  # nobody listens there
    assert refused(store, f"{host}/image:1") == f"{host}: cannot be reached: Connection refused"


def test_client_certificate(
    store: Store, certificates: Certificates, image: Path, tmp_path: Path
) -> None:
    files = {"certificate": certificates.server, "key": certificates.server.with_suffix(".key")}
    made = {name: str(path) for name, path in files.items()}
    registry = Registry(
        tmp_path / "data", {"http": {"tls": {**made, "clientcas": [str(certificates.ca)]}}}
    )
    try:
        directory = certificate_directory(registry.host)
        shutil.copy(certificates.ca, directory / "ca.crt")
        shutil.copy(certificates.client, directory / "client.cert")
        reference = f"{registry.host}/image:1"
        assert refused(store, reference).startswith(f"{directory}/client.cert: cannot be used: ")
        shutil.copy(certificates.client.with_suffix(".key"), directory / "client.key")
        registry.push(image, "image:1", "--dest-cert-dir", str(directory))
        get(store, reference)
        (directory / "client.cert").unlink()
        store.forget(reference)
        message = refused(store, reference)
        assert message.startswith(f"{registry.host}: ")
    finally:
        registry.stop()


def test_plain_http_is_for_loopback(
    registry: Registry, store: Store, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push(image, "plain:1")
    monkeypatch.setattr(registry_module, "is_loopback", lambda host: False)
    assert refused(store, f"{registry.host}/plain:1") == f"{registry.host}: does not speak TLS"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True), ("localhost:5000", True), ("127.0.0.1", True), ("127.9.9.9:1", True),
        ("[::1]:5000", True), ("[::2]", False), ("10.0.0.1", False), ("128.0.0.1", False),
        ("localhost.example.com", False), ("127.0.0.1.example.com", False), ("", False),
    ],
)  # fmt: skip
def test_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


# Basic


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory, image: Path) -> Iterator[Registry]:
    path = tmp_path_factory.mktemp("basic")
    (path / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "here", "path": str(path / "htpasswd")}}
    started = Registry(path / "data", {"auth": auth})
    started.push(image, "a/image:1", "--dest-creds", f"{USER}:{PASSWORD}")
    yield started
    started.stop()


def test_no_login(basic: Registry, store: Store) -> None:
    assert refused(store, f"{basic.host}/a/image:1") == (
        f"{basic.host}: needs a login: use `docker login {basic.host}` or "
        f"`podman login {basic.host}`"
    )


def test_dockers_login(
    basic: Registry, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker_login(tmp_path, monkeypatch, auths={basic.host: LOGIN})
    get(store, f"{basic.host}/a/image:1")


def test_wrong_login(
    basic: Registry, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = docker_login(tmp_path, monkeypatch, auths={basic.host: WRONG})
    assert refused(store, f"{basic.host}/a/image:1") == (
        f"{basic.host}: refuses the login of {path}"
    )


def test_podmans_login_is_for_a_repository(
    basic: Registry, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    auths = {basic.host: WRONG, f"{basic.host}/a": LOGIN, f"{basic.host}/a/imag": WRONG}
    write(tmp_path / "containers" / "auth.json", {"auths": auths})
    docker_login(tmp_path / "other", monkeypatch, auths={})
    get(store, f"{basic.host}/a/image:1")


def test_logins_that_skopeo_wrote(
    basic: Registry, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`skopeo login` writes what `podman login` does."""
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    subprocess.run(
        [
            *("skopeo", "login", "--tls-verify=false", "--username", USER, "--password-stdin"),
            basic.host,
        ],
        input=PASSWORD.encode(),
        check=True,
        capture_output=True,
    )
    get(store, f"{basic.host}/a/image:1")


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credential helper, which answers from a file and notes what it was asked."""
    program = tmp_path / "bin" / "docker-credential-ours"
    program.parent.mkdir()
    answer = tmp_path / "answer"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = get ] || exit 2\ncat > {tmp_path}/asked\n'
        f"[ -f {answer} ] || {{ echo credentials not found in native keychain; exit 1; }}\n"
        f"cat {answer}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return answer


@pytest.mark.parametrize("key", ["credsStore", "credHelpers", "http://"])
def test_credential_helper(
    key: str,
    helper: Path,
    basic: Registry,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of any registry, or of this one, as Docker has written it at one time or another."""
    if key == "credsStore":
        docker_login(tmp_path, monkeypatch, auths={basic.host: {}}, credsStore="ours")
    else:
        host = f"{key}{basic.host}/" if "://" in key else basic.host
        docker_login(tmp_path, monkeypatch, auths={host: {}}, credHelpers={host: "ours"})
    assert "needs a login" in refused(store, f"{basic.host}/a/image:1")
    answer = {"ServerURL": basic.host, "Username": USER, "Secret": PASSWORD}
    helper.write_text(json.dumps(answer))
    get(store, f"{basic.host}/a/image:1")
    assert (tmp_path / "asked").read_text() == basic.host


def test_bad_credential_helpers(
    helper: Path, basic: Registry, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = f"{basic.host}/a/image:1"
    path = docker_login(tmp_path, monkeypatch, credsStore="../../bin/sh")
    assert refused(store, reference) == (
        f"{path}: '../../bin/sh' is no name of a credential helper"
    )
    docker_login(tmp_path, monkeypatch, credsStore="none-such")
    assert refused(store, reference) == (
        f"{path}: names docker-credential-none-such, which is not in PATH"
    )
    docker_login(tmp_path, monkeypatch, credsStore="ours")
    helper.write_text("[]")
    assert refused(store, reference) == "docker-credential-ours: not a JSON object"
    helper.with_name("bin").joinpath("docker-credential-ours").write_text(
        "#!/bin/sh\necho locked; exit 1\n"
    )
    assert refused(store, reference) == "docker-credential-ours: locked"


@pytest.mark.parametrize(
    "key", ["https://index.docker.io/v1/", "docker.io", "docker.io/library", "index.docker.io"]
)
def test_docker_hubs_login(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = docker_login(tmp_path, monkeypatch, auths={"other.io": WRONG, key: LOGIN})
    assert find_credentials("docker.io", "library/busybox") == Credentials(path, USER, PASSWORD)


def test_docker_hubs_helper(helper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker_login(tmp_path, monkeypatch, credsStore="ours")
    helper.write_text(json.dumps({"Username": "<token>", "Secret": "an identity"}))
    found = find_credentials("docker.io", "library/busybox")
    assert found == Credentials("docker-credential-ours", identity_token="an identity")
    assert (tmp_path / "asked").read_text() == "https://index.docker.io/v1/"


def test_docker_hubs_host() -> None:
    registry = registry_module.Registry(parse_reference("busybox"), 1)
    assert registry._host == "registry-1.docker.io"


def test_bad_login_files(
    basic: Registry, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = f"{basic.host}/a/image:1"
    path = docker_login(tmp_path, monkeypatch, auths={basic.host: {"auth": "!"}})
    assert refused(store, reference) == (
        f"{path}: auths: {basic.host}: 'auth' is not the base64 of USER:PASSWORD; log in again"
    )
    Path(path).write_text("{")
    assert refused(store, reference).startswith(f"{path}: not valid JSON: ")


# Bearer


@pytest.fixture
def tokens(certificates: Certificates) -> Iterator[TokenService]:
    service = TokenService(certificates)
    yield service
    service.stop()


@pytest.fixture
def bearer(tokens: TokenService, tmp_path: Path, image: Path) -> Iterator[Registry]:
    started = Registry(tmp_path / "bearer", tokens.configuration())
    started.push(image, "a/image:1", "--dest-creds", f"{USER}:{PASSWORD}")
    tokens.forms.clear()
    tokens.requests.clear()
    yield started
    started.stop()


SCOPE = {"service": "the registry", "scope": "repository:a/image:pull"}


def test_anonymous_token(bearer: Registry, tokens: TokenService, store: Store) -> None:
    get(store, f"{bearer.host}/a/image:1")
    assert tokens.forms == [SCOPE]
    assert "authorization" not in tokens.requests[0].headers


def test_token_for_a_user(
    bearer: Registry,
    tokens: TokenService,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens._anonymous = False
    reference = f"{bearer.host}/a/image:1"
    assert refused(store, reference) == (
        f"{bearer.host}: needs a login: use `docker login {bearer.host}` or "
        f"`podman login {bearer.host}`"
    )
    path = docker_login(tmp_path, monkeypatch, auths={bearer.host: WRONG})
    assert refused(store, reference) == (f"{bearer.host}: refuses the login of {path}")
    docker_login(tmp_path, monkeypatch, auths={bearer.host: LOGIN})
    get(store, reference)
    assert tokens.forms == [SCOPE] * 3


def test_identity_token(
    bearer: Registry,
    tokens: TokenService,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens._anonymous = False
    login = {"auth": "", "identitytoken": tokens.refresh_token}
    docker_login(tmp_path, monkeypatch, auths={bearer.host: login})
    get(store, f"{bearer.host}/a/image:1")
    assert [request.method for request in tokens.requests] == ["POST"]
    assert tokens.forms == [
        {
            "grant_type": "refresh_token",
            "refresh_token": tokens.refresh_token,
            "client_id": "pyvmm",
            **SCOPE,
        }
    ]


def test_token_is_renewed(bearer: Registry, tokens: TokenService, store: Store) -> None:
    """In the middle of a pull, and once for all threads."""
    front = Front(bearer)
    try:
        realm = f'Bearer realm="http://{tokens.host}/token",service="the registry"'
        headers = {"WWW-Authenticate": realm}
        front.faults = [Fault("/blobs/", times=1, status=401, headers=headers)]
        get(store, f"{front.host}/a/image:1")
        assert tokens.forms == [SCOPE] * 2
    finally:
        front.stop()


def test_token_that_is_no_good(bearer: Registry, tokens: TokenService, store: Store) -> None:
    front = Front(bearer)
    try:
        realm = f'Bearer realm="http://{tokens.host}/token",service="the registry"'
        body = b'{"errors": [{"message": "authentication required"}]}'
        headers = {"WWW-Authenticate": realm}
        front.faults = [Fault("/v2/", times=100, status=401, headers=headers, body=body)]
        reference = f"{front.host}/a/image:1"
        assert refused(store, reference) == (
            f"{reference}: {front.host} denies access (authentication required): check the name, "
            "or log in with `docker login` or `podman login`"
        )
        assert len(front.requests) == 3
        front.faults[0].headers = {}
        assert refused(store, reference) == f"{front.host}: asks for a login of an unknown kind"
    finally:
        front.stop()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"{}", "gives no token"),
        (200, b'{"token": "a\\nb"}', "gives no token"),
        (200, b"x" * (1 << 21), "its answer is larger than 1048576 bytes"),
        (404, b"", "answers 404"),
        (302, b"", "answers 302"),
        (500, b"", "answers 500"),
    ],
)
def test_bad_token_services(
    status: int, body: bytes, message: str, bearer: Registry, store: Store
) -> None:
    def answer(handler: Handler, request: Request) -> None:
        handler.reply(request, status, body, Location="http://127.0.0.1:1/")

    service = Server(answer)
    front = Front(bearer)
    try:
        headers = {"WWW-Authenticate": f'Bearer realm="http://{service.host}/token"'}
        front.faults = [Fault("/v2/", times=100, status=401, headers=headers)]
        assert refused(store, f"{front.host}/a/image:1").endswith(f"{service.host}: {message}")
    finally:
        front.stop()
        service.stop()


@pytest.mark.parametrize(
    ("realm", "plain"),
    [
        ("http://127.0.0.1:1/token", False),
        ("http://registry.invalid/token", True),
        ("file:///etc/passwd", True),
        ("", True),
    ],
)
def test_plain_token_services(realm: str, plain: bool) -> None:
    """Of a registry on this machine, on this machine; nowhere else."""
    authorization = Authorization(Http(1), "a.invalid", "a")
    with pytest.raises(ImageError) as caught:
        authorization.renew([f'Bearer realm="{realm}"'], "", plain)
    assert str(caught.value) == f"a.invalid: its token service {realm!r} is not https"


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (['Bearer realm="a b",service=c'], {"bearer": {"realm": "a b", "service": "c"}}),
        (["Basic realm=x, Bearer realm=y"], {"basic": {"realm": "x"}, "bearer": {"realm": "y"}}),
        (["BASIC", 'bearer a="\\"", b = "1,2"'], {"basic": {}, "bearer": {"a": '"', "b": "1,2"}}),
        ([], {}),
        (['="', ",,,", '"'], {}),
    ],
)
def test_challenges(headers: list[str], found: dict[str, dict[str, str]]) -> None:
    assert _parse(headers) == found


# Redirects


def test_redirects_carry_no_login(
    basic: Registry, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blobs come from another host, which is not told who we are."""
    front, other = (
        Front(basic),
        Server(
            lambda handler, request: handler.reply(
                request,
                200,
                next(tmp_path.glob(f"**/{request.path.rpartition('/')[2]}")).read_bytes(),
            )
        ),
    )
    try:
        _, layers, _ = two_layers(tmp_path / "image", 1000)
        basic.push(tmp_path / "image", "moved:1", "--dest-creds", f"{USER}:{PASSWORD}")
        front.faults = [
            Fault(each, 1, 307, {"Location": f"http://{other.host}/storage/{each[7:]}"})
            for each in layers
        ]
        docker_login(tmp_path, monkeypatch, auths={front.host: LOGIN})
        get(store, f"{front.host}/moved:1")
        assert len(other.requests) == 2
        assert all("authorization" not in request.headers for request in other.requests)
        asked = [request for request in front.requests if "/blobs/" in request.path]
        assert all("authorization" in request.headers for request in asked)
        # A place that refuses is not told either.
        (Path(store.path) / "blobs" / "sha256" / layers[0][7:]).unlink()
        store.forget(f"{front.host}/moved:1")
        other._server.answer = lambda handler, request: (  # type: ignore[attr-defined]
            other.requests.append(request),
            handler.reply(request, 401, b"", WWW_Authenticate="Basic realm=x"),
        )
        front.faults = [Fault(layers[0], 9, 307, {"Location": f"http://{other.host}/x"})]
        assert refused(store, f"{front.host}/moved:1") == (
            f"{front.host}/moved:1: {other.host}: answers 401"
        )
        assert all("authorization" not in request.headers for request in other.requests)
    finally:
        front.stop()
        other.stop()


def test_redirects_stay_on_tls() -> None:
    registry = registry_module.Registry(parse_reference("a.invalid/a:b"), 1)
    for target in "http://a.invalid/x", "http://127.0.0.1/x":
        with pytest.raises(ImageError) as caught:
            registry._redirected("https://a.invalid/v2/", target)
        assert str(caught.value) == f"a.invalid/a:b: a.invalid redirects to {target!r}"
    assert registry._redirected("https://a.invalid/v2/", "/x") == "https://a.invalid/x"


# Proxies


class Proxy:
    """An HTTP proxy for CONNECT, which takes every name for this host."""

    def __init__(self, port: int) -> None:
        self.asked: list[tuple[str, str]] = []

        def connect(handler: Handler) -> None:
            login = handler.headers.get("proxy-authorization", "")
            self.asked.append((handler.path, login))
            if not login:
                handler.send_error(407)
                return
            handler.send_response(200)
            handler.end_headers()
            ends = handler.connection, socket.create_connection(("127.0.0.1", port))
            while True:
                for end in select.select(ends, [], [])[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        ends[1].close()
                        handler.close_connection = True
                        return
                    ends[end is ends[0]].sendall(data)

        self.server = Server(lambda handler, request: None)
        handler = type("ProxyHandler", (Handler,), {"do_CONNECT": connect})
        self.server._server.RequestHandlerClass = handler


def test_proxy(
    tls: Registry, store: Store, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy(tls.port)
    try:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
        monkeypatch.setenv("HTTPS_PROXY", f"http://us:pass%20word@{proxy.server.host}")
        get(store, "registry.invalid/image:1")
        login = f"Basic {base64.b64encode(b'us:pass word').decode()}"
        assert set(proxy.asked) == {("registry.invalid:443", login)}
        count = len(proxy.asked)
        store.forget("registry.invalid/image:1")
        monkeypatch.setenv("NO_PROXY", "example.com,.invalid")
        assert "cannot be reached" in refused(store, "registry.invalid/image:1")
        get(store, f"{tls.host}/image:1")  # this host needs none
        assert len(proxy.asked) == count
        monkeypatch.delenv("NO_PROXY")
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.server.host}")
        assert refused(store, "registry.invalid/image:1") == (
            "registry.invalid: the proxy: Tunnel connection failed: 407 Proxy Authentication "
            "Required"
        )
    finally:
        proxy.server.stop()


def test_bad_proxies(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    assert refused(store, "registry.invalid/image:1") == (
        "proxy socks5://127.0.0.1: only http and https proxies work"
    )
    monkeypatch.setenv("HTTPS_PROXY", "127.0.0.1:1")
    assert refused(store, "registry.invalid/image:1") == (
        "registry.invalid: the proxy: cannot be reached: Connection refused"
    )
    assert blobs(store) == set()
