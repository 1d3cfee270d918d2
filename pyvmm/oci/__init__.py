"""OCI images on disk: layouts, archives of layouts, and ``docker save`` archives.

Reads and verifies; writes nothing. Formats: OCI image-spec (image-layout.md, image-index.md,
manifest.md, config.md) and Docker's image manifest version 2, schema 2.
"""

from pyvmm.oci.image import Image, ImageConfig, Layer
from pyvmm.oci.open import open_image

__all__ = ["Image", "ImageConfig", "Layer", "open_image"]
