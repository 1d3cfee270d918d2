"""OCI images: of registries, in layouts, archives of layouts, and ``docker save`` archives.

Files are read and verified; only the store is written. Formats: OCI image-spec (image-layout.md,
image-index.md, manifest.md, config.md) and Docker's image manifest version 2, schema 2.
"""

from pyvmm.oci.image import Image, ImageConfig, Layer
from pyvmm.oci.open import open_image, with_image

__all__ = ["Image", "ImageConfig", "Layer", "open_image", "with_image"]
