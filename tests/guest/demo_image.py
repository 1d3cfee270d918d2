"""Makes the demo's image, an OCI layout of Debian's busybox: ``demo_image.py DIRECTORY``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from images import directory, file, layer, layout, symlink

APPLETS = ("cat", "df", "echo", "env", "id", "ls", "nproc", "ps", "sh", "uname")


def main() -> None:
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    layout(
        target,
        layer(
            directory("bin"),
            file("bin/busybox", busybox, mode=0o755),
            *(symlink(f"bin/{name}", "busybox") for name in APPLETS),
            directory("etc"),
            file("etc/passwd", b"root:x:0:0::/:/bin/sh\ndemo:x:1000:1000::/:/bin/sh\n"),
        ),
        User="demo",
        Cmd=["sh"],
    )


if __name__ == "__main__":
    main()
