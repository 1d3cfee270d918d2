"""Two real images: Debian by debootstrap, and what a Dockerfile makes of it with buildah.

They take minutes, so they are kept in the cache, each with its listing (reference.py), under a
digest of what makes them.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "kvmbox"), str(HERE.parents[1])]

from box import mirror, release  # noqa: E402
from reference import build, build_lister, list_tree, run, unpack_with_umoci  # noqa: E402

from pyvmm.cache import cache_dir  # noqa: E402

RECIPE = ("debian_images.py", "lister.c", "reference.py")
# What no program needs: the box's CPU hashes every byte.
TRIMMED = (
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
)
DOCKERFILE = """\
FROM localhost/base
RUN useradd -m -u 70000 -s /bin/sh somebody && echo text >/home/somebody/note && \\
    chown -R somebody:70000 /home/somebody && chmod 2750 /home/somebody
RUN chmod u+s /usr/bin/env && chmod 2755 /usr/bin/sort && \\
    ln /usr/bin/env /usr/local/bin/env-too && ln -s ../usr/bin/env /opt/env && \\
    ln /usr/share/common-licenses/GPL-3 /opt/license && \\
    setcap cap_net_raw+ep /usr/bin/head
RUN rm -r /usr/share/common-licenses /usr/share/bug && rm /usr/share/pixmaps/* && \\
    ln -s doc /usr/share/bug && mkdir /usr/share/common-licenses && \\
    rm -r /var/log/apt && mkfifo /var/log/apt
RUN dpkg-divert --local --rename --add /usr/bin/factor && rm /etc/localtime && \\
    mkdir /etc/localtime && rm -r /etc/skel && echo file >/etc/skel
RUN touch -d @-5 /opt/before && touch -d @4000000000 /opt/after && \\
    rm /usr/local/bin/env-too && mv /etc/pam.d /opt/pam.d && \\
    printf name >"/opt/$(printf '\\377\\376 name')"
CMD ["/lister"]
"""


def make(target: Path) -> None:
    """Put both images and their listings into a directory, made now if the cache lacks them."""
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in RECIPE))
    place = Path(cache_dir("debian-images")) / digest.hexdigest()[:16]
    if not place.exists():
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=place.parent) as work:
            made = Path(work, "made")
            made.mkdir()
            debootstrapped(made, Path(work))
            rebuilt(made, Path(work))
            made.rename(place)
    shutil.copytree(place, target, dirs_exist_ok=True)


def debootstrapped(made: Path, work: Path) -> None:
    tree, oci = work / "tree", made / "debian"
    suite = release("VERSION_CODENAME")
    run("debootstrap", "--variant=minbase", "--include=libcap2-bin", suite, tree, mirror(suite))
    for name in TRIMMED:
        shutil.rmtree(tree / name)
    shutil.copy(build_lister(work), tree / "lister")
    for name in "hosts", "hostname":  # this host's, or none, which init would make
        (tree / "etc" / name).write_text("127.0.0.1 debian\n")
    run("umoci", "init", "--layout", oci)
    run("umoci", "new", "--image", f"{oci}:latest")
    run("umoci", "insert", "--image", f"{oci}:latest", tree, "/")
    run("umoci", "config", "--image", f"{oci}:latest", "--config.cmd", "/lister")
    list_tree(made / "debian.listing", f"{oci}:latest", unpack_with_umoci)


def rebuilt(made: Path, work: Path) -> None:
    """From the image above. Every step here is a layer; none needs the network."""
    context, oci = work / "context", made / "debian-built"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    storage = f"containers-storage:[vfs@{work}/store+{work}/runroot]localhost/base:latest"
    run("skopeo", "--insecure-policy", "copy", "-q", f"oci:{made}/debian:latest", storage)
    build(context, work, oci)
    list_tree(made / "debian-built.listing", f"{oci}:latest", unpack_with_umoci)
