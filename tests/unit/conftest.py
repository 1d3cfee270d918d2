"""Fixtures that several files share."""

from .init_guest import built, guest, root  # noqa: F401
