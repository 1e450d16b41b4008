"""Lines of the log as TensorBoard event files: a projection, made again wherever it is needed, never the source.

The same lines give the same bytes on every server: names and stamps come from the lines alone.
"""

from __future__ import annotations

import base64
import binascii
import functools
import logging
import shutil
import struct
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedhelm.ids import SITE_NAME

__all__ = ["EventFile", "LiveProjection"]

_log = logging.getLogger("fedhelm.runner")

FLUSH_S = 1.0


@functools.cache
def _tensorboardx() -> tuple[Any, Any, Any]:
    # tensorboardX imports torch where it is installed: a second and 200 MB that an event file does not need.
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return event_pb2, summary_pb2, RecordWriter


def _seconds(stamp: str) -> float:
    try:
        moment = datetime.fromisoformat(stamp)
        # A stamp without a zone is UTC: the machine's own would give every server other bytes.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def _png_size(data: bytes) -> tuple[int, int]:
    if len(data) < 24 or data[:8] != b"\x89PNG\r\n\x1a\n":
        return 0, 0
    width, height = struct.unpack(">II", data[16:24])
    return width, height


class EventFile:
    """One site's event file, appended line by line.

    Args:
        folder: of the site; made when the first line comes.
        name: end of the file's name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._writer: Any = None
        self._flushed = 0.0

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a scalar, text or image; lines of other kinds are no TensorBoard data."""
        value = self._value(line)
        if value is None:
            return
        event_pb2, summary_pb2, _ = _tensorboardx()
        wall_time = _seconds(line["time"])
        if self._writer is None:
            self._open(wall_time)
        summary = summary_pb2.Summary(value=[value])
        event = event_pb2.Event(wall_time=wall_time, step=int(line["step"] or 0), summary=summary)
        self._writer.write(event.SerializeToString(deterministic=True))

    def _open(self, wall_time: float) -> None:
        event_pb2, _, record_writer = _tensorboardx()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"events.out.tfevents.{int(wall_time)}.{self._name}"
        self._writer = record_writer(str(path))
        first = event_pb2.Event(wall_time=wall_time, file_version="brain.Event:2")
        self._writer.write(first.SerializeToString(deterministic=True))

    def _value(self, line: Mapping[str, Any]) -> Any:
        _, summary_pb2, _ = _tensorboardx()
        tag, value = line["tag"], line["value"]
        if line["kind"] == "scalar":
            return summary_pb2.Summary.Value(tag=tag, simple_value=float(value))
        if line["kind"] == "text":
            from tensorboardX.proto.tensor_pb2 import TensorProto

            plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
            metadata = summary_pb2.SummaryMetadata(plugin_data=plugin)
            tensor = TensorProto(dtype="DT_STRING", string_val=[str(value).encode()])
            return summary_pb2.Summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=tensor)
        if line["kind"] == "image":
            try:
                data = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                return None
            width, height = _png_size(data)
            image = summary_pb2.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
            return summary_pb2.Summary.Value(tag=tag, image=image)
        return None

    def flush(self, *, force: bool = False) -> None:
        """Let readers see what was added; at most once a second unless forced."""
        now = time.monotonic()
        if self._writer is not None and (force or now - self._flushed > FLUSH_S):
            self._flushed = now
            self._writer.flush()

    def close(self) -> None:
        """Write the rest out."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class LiveProjection:
    """Event files of one job, one folder for each source, from its lines in the order of the log.

    Args:
        root: is emptied first: the lines are read from the first on.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[str, EventFile] = {}
        self.seq = -1
        """The slot of the newest lines that it has."""
        shutil.rmtree(root, ignore_errors=True)

    def add(self, item: Mapping[str, Any]) -> None:
        """Add ``{seq, source, lines}``; what an earlier call added, by its slot, must not be given again."""
        self.seq, source = item["seq"], item["source"]
        if not SITE_NAME.fullmatch(source):
            return
        if source not in self._files:
            self._files[source] = EventFile(self._root / source, source)
        for line in item["lines"]:
            try:
                self._files[source].add(line)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                _log.warning("a line of %s in slot %d is no TensorBoard data: %r", source, self.seq, error)
        self._files[source].flush()

    def close(self) -> None:
        """Write the rest out."""
        for file in self._files.values():
            file.close()
