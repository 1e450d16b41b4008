"""The shared store: the log, whose exclusive slots give safety, and the blobs that its records name."""

from __future__ import annotations

from fedhelm.persist.base import BlobStore, LogStore, Usage
from fedhelm.persist.blobs import BlobReader, BlobRef, BlobWriter, Manifest
from fedhelm.persist.chain import Checkpoint, Tip, checkpoint_owner
from fedhelm.persist.checkpoint import Base
from fedhelm.persist.compaction import Compaction
from fedhelm.persist.log import Batch, Log
from fedhelm.persist.posix import PosixBlobStore, PosixLogStore
from fedhelm.persist.record import MAX_RECORD_BYTES, VERSION, By, Draft, Record, decode, encode
from fedhelm.persist.store import Store, check_tokens, init_store, leave_token, open_store, probe

__all__ = [
    "MAX_RECORD_BYTES",
    "VERSION",
    "Base",
    "Batch",
    "BlobReader",
    "BlobRef",
    "BlobStore",
    "BlobWriter",
    "By",
    "Checkpoint",
    "Compaction",
    "Draft",
    "Log",
    "LogStore",
    "Manifest",
    "PosixBlobStore",
    "PosixLogStore",
    "Record",
    "Store",
    "Tip",
    "Usage",
    "check_tokens",
    "checkpoint_owner",
    "decode",
    "encode",
    "init_store",
    "leave_token",
    "open_store",
    "probe",
]
