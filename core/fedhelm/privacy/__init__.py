"""What a site takes away from results before they leave it, whatever the job asks: the policy, and its filters.

Nothing here knows a transport. :mod:`fedhelm.privacy.policy` reads the files and is pure; the other modules change
files of tensors block by block.
"""

from __future__ import annotations

__all__: list[str] = []
