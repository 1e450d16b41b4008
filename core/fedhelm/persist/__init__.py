"""The shared store: the log, whose exclusive slots give safety, and the blobs that its records name."""

from __future__ import annotations

from fedhelm.persist.base import BlobStore, LogStore
from fedhelm.persist.blobs import BlobReader, BlobRef, BlobWriter, Manifest
from fedhelm.persist.chain import Tip
from fedhelm.persist.log import Log
from fedhelm.persist.posix import PosixBlobStore, PosixLogStore
from fedhelm.persist.record import MAX_RECORD_BYTES, By, Draft, Record, decode, encode
from fedhelm.persist.store import Store, init_store, open_store, probe

__all__ = [
    "MAX_RECORD_BYTES",
    "BlobReader",
    "BlobRef",
    "BlobStore",
    "BlobWriter",
    "By",
    "Draft",
    "Log",
    "LogStore",
    "Manifest",
    "PosixBlobStore",
    "PosixLogStore",
    "Record",
    "Store",
    "Tip",
    "decode",
    "encode",
    "init_store",
    "open_store",
    "probe",
]
