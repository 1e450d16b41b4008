"""What a server shows of its kit when it registers (docs/decisions/0013); ``fedhelm_overseer.members`` checks it."""

from __future__ import annotations

from fedhelm.config.kit import Kit, find_config
from fedhelm.errors import KitError
from fedhelm.security.signing import SIGNATURE_FILE
from fedhelm.wire.overseer_api import Announcement

__all__ = ["announcement_of"]


def announcement_of(kit: Kit) -> Announcement:
    """Return what the opened ``kit`` of a server says: its ``signature.json`` and its configuration, as they are.

    Raises:
        KitError: a file cannot be read.
    """
    config = find_config(kit.root)
    try:
        manifest, text = (kit.startup / SIGNATURE_FILE).read_text(), config.read_text()
    except (OSError, ValueError) as error:
        raise KitError(f"{kit.startup} cannot be read: {error}") from error
    return Announcement(manifest=manifest, config=text)
