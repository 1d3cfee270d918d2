"""The guest's half of the agent protocol: a whole run in any pieces, and hostile frames."""

from __future__ import annotations

import json
import random
import struct

import pytest

from pyvmm import results
from pyvmm.errors import GuestError
from pyvmm.exchange import frame
from pyvmm.results import Session, Usage

HELLO = frame(results.HELLO, struct.pack("<IIQQ", 2, 2, 111, 500 << 20))
STARTED = frame(results.STARTED, struct.pack("<Q", 222))
COUNTS = tuple(range(1, 11))
EXIT = frame(
    results.EXIT, struct.pack("<II12Q", 3, 0, 333, *COUNTS, 0), 0
)  # user … steal, no OOM kill
END = frame(results.END)


def begin(index: int, error: int = 0) -> bytes:
    return frame(results.FILE_BEGIN, struct.pack("<iIQ", error, 0o100644, 5), index)


def file_end(index: int, error: int = 0) -> bytes:
    return frame(results.FILE_END, struct.pack("<i", error), index)


LIMIT = 1 << 20
OUTPUTS = ["/a", "/b", "/gone"]
RUN = b"".join(
    [
        HELLO,
        STARTED,
        frame(results.STDOUT, b"one "),
        frame(results.STDERR, b"\xff\0bad"),
        frame(results.STDOUT, b""),
        frame(results.STDOUT, b"two"),
        frame(results.STDIN_TAKEN, struct.pack("<I", 77)),
        EXIT,
        begin(0),
        frame(results.FILE_DATA, b"con", 0),
        frame(results.FILE_DATA, b"tent", 0),
        file_end(0),
        begin(1),
        file_end(1),
        begin(2, 2),
        file_end(2, 2),
        END,
    ]
)


def check_run(session: Session) -> None:
    result = session.finish()
    assert session.end
    assert (result.exit_code, result.signal, result.cpus) == (3, 0, 2)
    assert (result.stdout, result.stderr) == (b"one two", b"\xff\0bad")
    assert result.files == {"/a": b"content", "/b": b""}
    assert result.missing == {"/gone": "No such file or directory"}
    assert result.usage == Usage(*COUNTS, 0)
    assert not result.out_of_memory
    assert (session.init_ns, session.started_ns, session.ended_ns) == (111, 222, 333)
    assert session.stdin_taken == 77


class TestWholeRun:
    def test_at_once(self):
        session = Session(OUTPUTS, LIMIT)
        session.feed(RUN)
        check_run(session)

    def test_split_at_every_point(self):
        for cut in range(len(RUN) + 1):
            session = Session(OUTPUTS, LIMIT)
            session.feed(RUN[:cut])
            session.feed(RUN[cut:])
            check_run(session)

    def test_byte_by_byte(self):
        session = Session(OUTPUTS, LIMIT)
        for i in range(len(RUN)):
            session.feed(RUN[i : i + 1])
        check_run(session)

    def test_random_pieces(self):
        rng = random.Random(1)
        for _ in range(200):
            session, at = Session(OUTPUTS, LIMIT), 0
            while at < len(RUN):
                size = rng.randint(1, 60)
                session.feed(RUN[at : at + size])
                at += size
            check_run(session)

    def test_output_goes_to_sinks_as_it_comes(self):
        out, err = [], []
        session = Session(OUTPUTS, LIMIT, out.append, err.append)
        session.feed(RUN)
        assert b"".join(out) == b"one two"
        assert b"".join(err) == b"\xff\0bad"
        assert session.finish().stdout == b""

    def test_longest_frame(self):
        session = Session([], LIMIT)
        data = bytes(65536)
        session.feed(HELLO + frame(results.STDOUT, data))
        assert session.finish().stdout == data

    def test_what_comes_after_end_is_not_looked_at(self):
        session = Session(OUTPUTS, LIMIT)
        session.feed(RUN + b"\xff" * 100)
        check_run(session)


class TestPartOfARun:
    def test_what_came_is_kept(self):
        session = Session(["/a", "/b"], LIMIT)
        session.feed(HELLO + STARTED + frame(results.STDOUT, b"so far") + begin(0))
        result = session.finish()
        assert not session.end
        assert result.stdout == b"so far"
        assert result.files == {}
        assert result.missing == dict.fromkeys(["/a", "/b"], "the run ended before it was sent")

    def test_file_that_was_cut_short(self):
        session = Session(["/a"], LIMIT)
        data = frame(results.FILE_DATA, b"half", 0)
        session.feed(HELLO + begin(0) + data + file_end(0, 5))
        result = session.finish()
        assert result.files == {}
        assert result.missing == {"/a": "Input/output error"}

    @pytest.mark.parametrize("code", [125, 126, 127])
    def test_program_that_could_not_start(self, code):
        session = Session([], LIMIT)
        session.feed(HELLO + frame(results.FAILED, struct.pack("<I", code) + b"no \xff") + END)
        result = session.finish()
        assert (result.exit_code, result.failure) == (code, "no \ufffd")

    def test_killed_by_signal_and_out_of_memory(self):
        session = Session([], LIMIT)
        exit_ = frame(results.EXIT, struct.pack("<II12Q", 137, 9, 1, *[0] * 10, 2))
        session.feed(HELLO + STARTED + exit_)
        result = session.finish()
        assert (result.exit_code, result.signal, result.out_of_memory) == (137, 9, True)

    def test_stdin_taken_adds_up(self):
        session = Session([], LIMIT)
        taken = [frame(results.STDIN_TAKEN, struct.pack("<I", n)) for n in (1, 20, 300)]
        session.feed(HELLO + b"".join(taken))
        assert session.stdin_taken == 321


class TestLimit:
    """A run keeps no more than it was told to, and says what it cut."""

    @pytest.mark.parametrize("limit", [7, 8, 100])
    def test_just_enough(self, limit):
        session = Session(OUTPUTS, limit)
        session.feed(RUN)
        result = session.finish()
        assert result.truncated == []
        assert (result.stdout, result.files["/a"]) == (b"one two", b"content")

    def test_less(self):
        session = Session(OUTPUTS, 5)
        session.feed(RUN)
        result = session.finish()
        assert sorted(result.truncated) == ["/a", "stdout"]
        assert (result.stdout, result.stderr) == (b"one t", b"\xff\0bad")
        assert result.files == {"/a": b"conte", "/b": b""}

    def test_a_sink_gets_everything(self):
        out = []
        session = Session(OUTPUTS, 5, out.append)
        session.feed(RUN)
        assert b"".join(out) == b"one two"
        assert "stdout" not in session.finish().truncated


class TestHostileFrames:
    def refuse(self, data: bytes, message: str, outputs=("/a", "/b")) -> None:
        session = Session(outputs, LIMIT)
        with pytest.raises(GuestError, match=message):
            session.feed(data)

    @pytest.mark.parametrize("length", [65537, 1 << 31, 0xFFFFFFFF])
    def test_too_long_is_refused_by_its_header(self, length):
        header = struct.pack("<IHH", length, results.STDOUT, 0)
        self.refuse(HELLO + header, f"a frame of {length} bytes")
        self.refuse(header, f"a frame of {length} bytes")

    @pytest.mark.parametrize("kind", [0, *range(2, 12), 12, 0xFFFF])
    def test_before_hello(self, kind):
        self.refuse(frame(kind), f"began with frame type {kind}, not HELLO")

    def test_file_that_goes_on_after_it_was_cut(self):
        data = [frame(results.FILE_DATA, bytes(65536), 1)] * (LIMIT // 65536 + 2)
        session = Session(OUTPUTS, LIMIT)
        session.feed(HELLO + STARTED + EXIT + begin(1) + b"".join(data[:-1]))
        with pytest.raises(GuestError, match="sent output number 1 without end"):
            session.feed(data[-1])

    def test_file_again(self):
        files = begin(0) + file_end(0) + begin(0)
        self.refuse(HELLO + STARTED + EXIT + files, "sent output number 0 twice")

    @pytest.mark.parametrize("kind", [0, 12, 255, 0xFFFF])
    def test_unknown_type(self, kind):
        self.refuse(HELLO + frame(kind), f"unknown frame type {kind}")

    @pytest.mark.parametrize("version", [0, 1, 0xFFFFFFFF])
    def test_other_version(self, version):
        hello = frame(results.HELLO, struct.pack("<IIQQ", version, 1, 0, 0))
        self.refuse(hello, f"speaks protocol {version}, not 2")

    @pytest.mark.parametrize(
        ("kind", "size"),
        [
            (results.HELLO, 24),
            (results.STARTED, 8),
            (results.EXIT, 104),
            (results.FILE_BEGIN, 16),
            (results.FILE_END, 4),
            (results.FAILED, 4),
            (results.STDIN_TAKEN, 4),
        ],
    )
    def test_short_payloads(self, kind, size):
        start = b"" if kind == results.HELLO else HELLO
        if kind == results.FILE_END:
            start += begin(0)
        for short in range(size):
            self.refuse(start + frame(kind, bytes(short)), f"short frame of type {kind}")

    @pytest.mark.parametrize("index", [2, 3, 0xFFFF])
    def test_output_that_was_not_asked_for(self, index):
        message = f"output number {index}: not asked for"
        self.refuse(HELLO + begin(index), message)
        self.refuse(HELLO + frame(results.FILE_DATA, b"x", index), message)
        self.refuse(HELLO + file_end(index), message)

    def test_output_out_of_order(self):
        message = "output number 1 out of order"
        self.refuse(HELLO + frame(results.FILE_DATA, b"x", 1), message)
        self.refuse(HELLO + begin(0) + frame(results.FILE_DATA, b"x", 1), message)
        self.refuse(HELLO + begin(0) + file_end(1), message)
        self.refuse(HELLO + begin(1) + file_end(1) + file_end(1), message)

    @pytest.mark.parametrize("code", [0, 1, 124, 128, 0xFFFFFFFF])
    def test_failure_with_a_code_that_is_none(self, code):
        self.refuse(HELLO + frame(results.FAILED, struct.pack("<I", code)), f"code {code}")

    def test_random_bytes_raise_nothing_else(self):
        rng = random.Random(2)
        for _ in range(3000):
            session = Session(["/a"], LIMIT)
            kinds = [rng.randrange(13) for _ in range(5)]
            frames = [frame(k, rng.randbytes(rng.choice((0, 4, 8, 16, 24, 104)))) for k in kinds]
            try:
                session.feed(HELLO + b"".join(frames))
            except GuestError:
                pass
            session.finish()


def test_json_keeps_text_as_text_and_bytes_as_base64():
    result = results.Result(stdout="grün".encode(), stderr=b"\xff", files={"/a": b"x"})
    loaded = json.loads(result.to_json())
    assert loaded["stdout"] == "grün"
    assert loaded["stderr"] == {"base64": "/w=="}
    assert loaded["files"] == {"/a": "x"}
    assert loaded["usage"]["user_us"] == 0


@pytest.mark.parametrize(
    "kind", [results.STDOUT, results.STDERR, results.STDIN_TAKEN, results.EXIT]
)
def test_nothing_but_files_after_the_exit(kind: int) -> None:
    """Or it could go on for ever."""
    session = Session(["/f"], LIMIT)
    session.feed(HELLO + STARTED + EXIT)
    with pytest.raises(GuestError, match=f"^the guest's agent sent frame type {kind} after EXIT$"):
        session.feed(frame(kind, b"1234"))


def test_only_the_contents_of_files_give_a_run_more_time() -> None:
    session = Session(["/f"], LIMIT)
    session.feed(HELLO + STARTED + EXIT)
    session.feed(frame(results.FILE_BEGIN, struct.pack("<iIQ", 0, 0, 0)))
    for _ in range(1000):
        session.feed(frame(results.FILE_DATA))
    assert session.file_bytes == 0
    session.feed(frame(results.FILE_DATA, b"1234"))
    assert session.file_bytes == 4
