"""The host's half of the agent protocol: its frames, and how far ahead it sends input."""

from __future__ import annotations

import random
import struct

from pyvmm.exchange import CONFIG, STDIN, STDIN_WINDOW, Input, config_frame, frame


class TestInput:
    def test_small_input_and_its_end(self):
        given = Input(b"abc")
        assert given.frames(0) == frame(STDIN, b"abc") + frame(STDIN)
        assert given.frames(3) == b""

    def test_no_input_is_just_an_end(self):
        given = Input(b"")
        assert given.frames(0) == frame(STDIN)
        assert given.frames(0) == b""

    @staticmethod
    def payload(frames: bytes) -> tuple[bytes, bool]:
        """The data in STDIN frames, and whether their end is among them."""
        data, end = b"", False
        while frames:
            length, kind, index = struct.unpack_from("<IHH", frames)
            assert (kind, index) == (STDIN, 0)
            assert length <= 65536
            assert not end
            end = length == 0
            data += frames[8 : 8 + length]
            frames = frames[8 + length :]
        return data, end

    def test_never_more_than_the_window_ahead(self):
        rng = random.Random(3)
        whole = rng.randbytes(1_000_000)
        given, sent, taken, ended = Input(whole), b"", 0, False
        while not ended:
            data, ended = self.payload(given.frames(taken))
            sent += data
            assert len(sent) - taken <= STDIN_WINDOW
            assert sent == whole or len(sent) - taken == STDIN_WINDOW
            taken = min(len(sent), taken + rng.randint(0, 100_000))
        assert sent == whole

    def test_guest_that_claims_more_than_was_sent(self):
        given = Input(bytes(300_000))
        assert len(self.payload(given.frames(2**64))[0]) == 300_000


def test_config_frame():
    raw = config_frame(
        ["prog", "ä"], ["K=V"], workdir="/w", user="", hostname="h", outputs=["/o"], stdin=True,
        privileged=False, clock_ns=5, limit=6,
    )  # fmt: skip
    length, kind, index = struct.unpack_from("<IHH", raw)
    assert (length, kind, index) == (len(raw) - 8, CONFIG, 0)
    records, at = [], 8
    while at < len(raw):
        key, zero, size = struct.unpack_from("<HHI", raw, at)
        assert zero == 0
        records.append((key, raw[at + 8 : at + 8 + size]))
        at += 8 + size
    assert records == [
        (1, b"prog"), (1, "ä".encode()), (2, b"K=V"), (6, b"/o"), (3, b"/w"), (5, b"h"),
        (7, b"\1"), (8, b"\0"), (9, struct.pack("<Q", 5)), (10, struct.pack("<Q", 6)),
    ]  # fmt: skip
