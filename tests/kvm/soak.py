#!/usr/bin/env python3
"""The random programs of the hostile kernel with new seeds, for SECONDS: soak.py [SECONDS [SEED]].

Not a test: it goes on where test_hostile_kernel.py ends. What fails is said with its seed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.kvm.hostile import RANDOM, Host

LONGER = 5  # times the steps of the test


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600
    first = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time()) % 1_000_000 + 100
    failed = runs = 0
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = place
        host = Host(Path(place))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            seed = first + runs // len(RANDOM)
            program = list(RANDOM)[runs % len(RANDOM)]
            count, vcpus = RANDOM[program]
            runs += 1
            try:
                ended = host.run(program, seed, LONGER * count, vcpus=vcpus)
                assert ended == f"guest ended early: {program} done", ended
            except Exception as error:  # whatever it is: say which, go on
                failed += 1
                print(f"{program} seed {seed}: {type(error).__name__}: {error}", flush=True)
        host.fine()
    print(f"{runs} runs from seed {first}, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
