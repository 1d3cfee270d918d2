"""``pyvmm bench --calibrate``: work of a known amount tells how small a change a host can see."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import cast

from ..options import Options
from .api import prepared
from .model import Report
from .runner import Progress, Schedule
from .statistics import ALARM, Ratio, Summary, differs, paired_ratio, runs_for, summarize
from .subject import subjects

PROBE = 1000  # thousand steps: what is run first, to learn how long they take
LENGTH = 0.1  # seconds that each run is to take
CHANGES = (0.05, 0.02, 0.01)  # for which it says how many runs they take
MORE = 0.03  # how much more work the third benchmark has
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Calibration:
    """What this host can see. ``report`` has the runs."""

    report: Report
    alone: Summary
    """of the time of the same work, run after run"""
    same: Ratio
    """of pairs of the same work: should be 1"""
    more: Ratio
    """of pairs of which the second has 3 % more work: should be 1.03"""

    @property
    def sound(self) -> bool:
        """No difference was found where there is none, and the one that there is was."""
        return not differs(self.same) and differs(self.more)

    def describe(self) -> str:
        """It in words, a fact a line."""
        alone = self.alone
        lines = [f"{alone.n} runs of the same work: {alone.median * 1e3:.3f} ms, CV {alone.cv:.2%}"]
        if alone.outliers:
            lines.append(f"  {len(alone.outliers)} of them outliers")
        if alone.drift < ALARM:
            lines.append(f"  the host drifts (p = {alone.drift:.2g}): compare by pyvmm duet")
        if alone.modes < ALARM:
            lines.append(f"  it has two modes (p = {alone.modes:.2g}): see pyvmm tune")
        if alone.detectable is not None:
            lines.append(f"least change to be seen by as many of each: {alone.detectable:.2%}")
        values = self.report.benchmarks[0].series["time"].values
        for change in CHANGES:
            lines.append(f"runs of each to see {change:.0%}: {runs_for(values, change)}")
        lines += [
            f"pairs of the same work:    {_shown(self.same)}",
            f"pairs with {MORE:.0%} more work:  {_shown(self.more)}",
            "this host's numbers are to be trusted that far"
            if self.sound
            else "this host cannot tell 3 %: quieten it (pyvmm tune), or make more runs",
        ]
        return "\n".join(lines)


def calibrate(
    runs: int = 30, *, progress: Progress | None = None, tune: bool = False, **options: object
) -> Calibration:
    """Run the known work, three VMs in turn; ``options`` are the VM's. Raises PyvmmError."""
    vm = cast(Options, options)
    work = amount(vm)
    names = {"work": work, "the same": work, f"{MORE:.0%} more": round(work * (1 + MORE))}
    report = measure(names, runs, vm, progress, tune)
    one, same, more = (each.series["time"].values for each in report.benchmarks)
    return Calibration(report, summarize(one), paired_ratio(one, same), paired_ratio(one, more))


def amount(options: Options) -> int:
    """How many thousand steps take LENGTH here."""
    (first,) = measure({"work": PROBE}, 3, options).benchmarks
    return max(PROBE, int(PROBE * LENGTH / summarize(first.series["time"].values).median))


def measure(
    works: Mapping[str, int],
    runs: int,
    options: Options,
    progress: Progress | None = None,
    tune: bool = False,
) -> Report:
    """Benchmarks by their names, of so many thousand steps each, in turn: a VM for each."""
    schedule = Schedule(runs=runs, max_runs=runs, mode="same-vm", together=len(works) > 1)
    with tempfile.TemporaryDirectory() as place:
        image = os.path.join(place, "work")
        _layout(image, files("pyvmm").joinpath("_data/work").read_bytes())
        made = [subjects([image], [str(n)], {}, options, name)[0] for name, n in works.items()]
        report = prepared(made, schedule, progress=progress, tune=tune)
    report.duet = report.duet if len(works) == 2 else []
    return report


def _shown(ratio: Ratio) -> str:
    if ratio.interval is None:
        return f"{ratio.value:.4f} (too few for an interval)"
    return f"{ratio.value:.4f} [{ratio.interval.low:.4f}, {ratio.interval.high:.4f}]"


def _layout(path: str, program: bytes) -> None:
    """An OCI layout with the one program (image-spec, image-layout.md)."""
    blobs = os.path.join(path, "blobs", "sha256")
    os.makedirs(blobs)

    def blob(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        with open(os.path.join(blobs, digest), "wb") as file:
            file.write(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("work")
        entry.mode, entry.size = 0o755, len(program)
        tar.addfile(entry, io.BytesIO(program))
    layer = blob(archive.getvalue(), LAYER)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/work"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob(json.dumps(config).encode(), CONFIG),
        "layers": [layer],
    }
    index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode(), MANIFEST)]}
    for name, document in (("index.json", index), ("oci-layout", {"imageLayoutVersion": "1.0.0"})):
        with open(os.path.join(path, name), "w") as file:
            json.dump(document, file)
