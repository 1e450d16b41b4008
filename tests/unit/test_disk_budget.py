"""The store's disk: warn, then take no new jobs, before it is full."""

from __future__ import annotations

import pytest

from fedhelm.errors import Refused
from fedhelm.persist.base import Usage
from fedhelm_server.disk_budget import GIB, DiskBudget, Room, room_of
from tests.fakes.persist_memory import MemoryBlobStore


@pytest.mark.parametrize(
    ("total", "free", "room"),
    [
        (1000 * GIB, 4 * GIB, Room.ENOUGH),  # of a large disk the absolute figures count
        (1000 * GIB, 4 * GIB - 1, Room.LITTLE),
        (1000 * GIB, 1 * GIB, Room.LITTLE),
        (1000 * GIB, 1 * GIB - 1, Room.NO_NEW_JOBS),
        (10 * GIB, 1.5 * GIB, Room.ENOUGH),  # of a small one the shares
        (10 * GIB, 1.49 * GIB, Room.LITTLE),
        (10 * GIB, 0.5 * GIB, Room.LITTLE),
        (10 * GIB, 0.49 * GIB, Room.NO_NEW_JOBS),
        (10 * GIB, 0, Room.NO_NEW_JOBS),
    ],
)
def test_the_smaller_of_share_and_figure_decides(total, free, room):
    assert room_of(Usage(total, int(free))) is room


async def test_a_warning_then_a_refusal_with_figures_and_what_to_do_then_jobs_again(caplog):
    blobs = MemoryBlobStore()
    disk = DiskBudget(blobs)
    blobs.room = Usage(1000 * GIB, 900 * GIB)
    await disk.require_room()
    assert disk.warnings() == []
    blobs.room = Usage(1000 * GIB, 3 * GIB)
    await disk.require_room()
    assert disk.warnings() == ["3.0 GiB of 1000.0 GiB are free on the store's disk: soon new jobs will be refused"]
    blobs.room = Usage(1000 * GIB, GIB // 2)
    for _ in range(2):
        with pytest.raises(Refused, match=r"0.5 GiB of 1000.0 GiB are free.*no new job") as refused:
            await disk.require_room()
    assert "delete_job" in refused.value.hint
    assert len([one for one in caplog.records if one.levelname == "WARNING"]) == 2, "each level is said once"
    blobs.room = Usage(1000 * GIB, 900 * GIB)
    await disk.require_room()


async def test_a_store_that_does_not_answer_is_not_taken_for_a_full_one():
    blobs = MemoryBlobStore()
    disk = DiskBudget(blobs)
    blobs.down = True
    blobs.usage = lambda: blobs._require("jobs/x")
    assert await disk.look() is None
    await disk.require_room()
