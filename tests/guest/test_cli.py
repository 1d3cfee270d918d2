"""--json, --dry-run, --timeline and --console."""

from __future__ import annotations

import json
import re

from harness import IMAGES, Host

SHELL = ("run", "--image", IMAGES / "shell", "--kernel", "minimal")


def test_json(host: Host) -> None:
    script = r"printf 'text\n'; printf '\200\377' >&2; printf '\200\201' >/f; exit 3"
    running = host.start(
        "sh", "-c", script, kernel="minimal", json="result.json", output="/f:f", memory="256M"
    )
    running.finish().check(3, b"text\n", b"\x80\xff")
    place = running.paths["out"].parent
    found = json.loads((place / "result.json").read_text())
    assert (found["exit_code"], found["stdout"], found["stderr"]) == (
        3,
        "text\n",
        {"base64": "gP8="},
    )
    assert found["files"] == {"/f": {"base64": "gIE="}}
    assert (place / "f").read_bytes() == b"\x80\x81"
    assert {
        "exit_code", "signal", "stdout", "stderr", "files", "missing", "timed_out", "out_of_memory",
        "failure", "cpus", "usage", "timings", "timeline", "exits", "marks", "warnings", "console",
    } <= set(found)  # fmt: skip
    assert set(found["marks"]) == {"init", "program", "ended"}
    assert set(found["usage"]) == {
        "user_us", "system_us", "peak_rss", "minor_faults", "major_faults", "block_in", "block_out",
        "voluntary_switches", "involuntary_switches", "steal_ns", "oom_kills",
    }  # fmt: skip


def test_json_on_stdout_is_all_there_is(host: Host) -> None:
    done = host.run("echo", "hi", kernel="minimal", json="-", timeline="")
    assert json.loads(done.out)["stdout"] == "hi\n"
    assert re.search(rb"^ +[0-9.]+ ms  total$", done.err, re.MULTILINE)


def test_dry_run_needs_no_kvm(host: Host) -> None:
    done = host.run("echo", "hi", kernel="minimal", dry_run="", memory="5G", vcpus="2")
    assert (done.code, done.err) == (0, b"")
    lines = done.out.decode().splitlines()
    words = [line.split(maxsplit=1)[0] for line in lines if not line.startswith(" ")]
    assert words == [
        "kernel", "entry", "cmdline", "program", "vcpus", *["memory"] * 5, *["device"] * 4, "disk",
    ]  # fmt: skip
    assert lines[0].startswith("kernel   minimal 6.")
    assert re.fullmatch(r"entry    linux64 at 0x[0-9a-f]+", lines[2])
    assert "program  echo hi" in lines
    assert "vcpus    2" in lines
    assert [line for line in lines if line.startswith("memory") and "initramfs" not in line] == [
        "memory   0x0000000000-0x000009fbff RAM",
        "memory   0x000009fc00-0x00000fffff reserved",
        "memory   0x0000100000-0x00bfffffff RAM",
        "memory   0x0100000000-0x017fffffff RAM",
    ]
    assert lines[-5:] == [
        "device   virtio-blk at 0xc0001000, interrupt 5",
        "device   virtio-vsock at 0xc0002000, interrupt 6",
        "device   virtio-rng at 0xc0003000, interrupt 7",
        "device   16550A at port 0x3f8, interrupt 4",
        "disk     1073741824 bytes, ext4",
    ]


def test_output_to_where_nothing_can_be_written(host: Host) -> None:
    done = host.run("touch", "/f", kernel="minimal", output="/f:/nonexistent/f")
    done.check(125, b"", b"pyvmm: cannot write output /nonexistent/f: No such file or directory\n")


def test_console_is_on_stderr(host: Host) -> None:
    done = host.run("echo", "out", kernel="minimal", console="", cmdline_extra="loglevel=7")
    assert (done.code, done.out) == (0, b"out\n")
    assert b"Linux version 6." in done.err
