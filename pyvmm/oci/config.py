"""The image configuration (image-spec config.md; Docker's is the same where it matters here)."""

from __future__ import annotations

from pyvmm.oci.blob import checked_digest
from pyvmm.oci.fields import Fields
from pyvmm.oci.image import ImageConfig
from pyvmm.oci.platform import Platform
from pyvmm.record import Record


class Configuration(Record):
    """A configuration document, read."""

    platform: Platform
    diff_ids: tuple[str, ...]
    run: ImageConfig


def read_configuration(fields: Fields) -> Configuration:
    """Read the document; ImageError where a field is not what it must be."""
    run = fields.object("config")
    diff_ids = fields.object("rootfs").texts("diff_ids")
    return Configuration(
        platform=Platform(fields.text("os"), fields.text("architecture"), fields.text("variant")),
        diff_ids=tuple(checked_digest(diff_id, fields.where) for diff_id in diff_ids),
        run=ImageConfig(
            entrypoint=run.texts("Entrypoint"),
            cmd=run.texts("Cmd"),
            env=run.texts("Env"),
            workdir=run.text("WorkingDir"),
            user=run.text("User"),
            stop_signal=run.text("StopSignal"),
        ),
    )
