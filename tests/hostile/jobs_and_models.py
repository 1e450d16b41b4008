"""Decoders of what comes in a job: bundles, job.yaml, tensors."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedhelm.config.yaml_source import load_yaml
from fedhelm.errors import BadInput
from fedhelm.job import bundle
from fedhelm.job.loading import load_bundle
from fedhelm.job.model import JobConfig
from fedhelm.job.rules import parse_config, parse_document
from fedhelm.tensors.codec import encode, read_bits, read_header
from tests.hostile.decoder import Decoder, as_json, as_text, dump

JOB_YAML = b"""\
name: hello-numpy
deploy: {app: ["@ALL"]}
min_sites: 2
mandatory_sites: [site-1]
script: train.py
options: {lr: 0.1, deep: {er: [1, two, null, true]}}
initial_model: model.safetensors
workflow:
  - {type: fedavg, rounds: 3, min_responses: 2, deadline: 1.5m, evaluate: true, best_metric: accuracy}
durability: ephemeral
"""


def model() -> bytes:
    arrays = {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.int64), "on": np.array([True, False])}
    return b"".join(map(bytes, encode(arrays)))


def tar(*items: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in items:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return out.getvalue()


def good_bundle() -> bytes:
    return tar(("app/train.py", b"print(1)\n"), ("job.yaml", JOB_YAML), ("model.safetensors", model()))


def _with_checksums(data: bytes) -> bytes:
    """Give each block that looks like a header the checksum that tarfile wants."""
    blocks = bytearray(data)
    for at in range(0, len(blocks) - 511, 512):
        if blocks[at + 257 : at + 262] == b"ustar":
            blocks[at + 148 : at + 156] = b" " * 8
            blocks[at + 148 : at + 156] = b"%06o\0 " % sum(blocks[at : at + 512])
    return bytes(blocks)


def _with_length(data: bytes) -> bytes:
    """Let the length at the front of a safetensors file be that of the JSON behind it."""
    end = data.rfind(b"}") + 1
    return max(0, end - 8).to_bytes(8, "little") + data[8:] if end > 8 else data


class _Unpacked:
    """What is unpacked has to be under the folder it was to go to, plain files of the announced content."""

    def __init__(self, place: Path) -> None:
        self._archive, self._target = place / "bundle", place / "in" / "unpacked"

    def __call__(self, data: bytes) -> object:
        self._archive.write_bytes(data)
        listed = bundle.index(self._archive)
        bundle.unpack(self._archive, self._target)
        found: dict[str, int] = {}
        for path in sorted(self._target.rglob("*"), reverse=True):
            assert not path.is_symlink()
            if path.is_dir():
                path.rmdir()
            else:
                assert path.is_file()
                found[str(path.relative_to(self._target))] = path.stat().st_size
                path.unlink()
        assert found == {name: size for name, (_, size) in listed.items()}
        self._target.rmdir()
        return found


def decoders(place: Path) -> Iterator[Decoder]:
    archive, tensors, text = place / "archive", place / "tensors", place / "job.yaml"

    def of_file(path: Path, take: Any) -> Any:
        def decode(data: bytes) -> object:
            path.write_bytes(data)
            return take(path)

        return decode

    long_name = tar(("λ" * 60, b"3"), ("/".join(["x" * 120] * 3), b"far"))
    yield Decoder("bundle: unpack", _Unpacked(place), (good_bundle(), long_name), repair=_with_checksums)
    yield Decoder("bundle: job", of_file(archive, load_bundle), (good_bundle(),), repair=_with_checksums)
    yield Decoder("bundle: path", as_text(bundle.wrong_path), (b"app/train.py", b"../a", "λ/ß".encode()))
    yield Decoder("safetensors: header", of_file(tensors, read_header), (model(),), repair=_with_length)
    yield Decoder("safetensors: file", of_file(tensors, read_bits), (model(),), repair=_with_length)
    yield Decoder("yaml: file", of_file(text, load_yaml), (JOB_YAML, b'a: "\\u00e9"\nb: [0x1f, 1.5e3, ~]\n'))
    config = parse_config(JOB_YAML.decode(), "job.yaml").to_json()
    yield Decoder("yaml: job.yaml", of_file(text, _job_file), (JOB_YAML, dump(config)))
    yield Decoder("job: config of a record", as_json(_job_config), (dump(config),))


def _job_file(path: Path) -> object:
    return parse_document(load_yaml(path, "job.yaml"))


def _job_config(value: Any) -> object:
    if not isinstance(value, dict):
        raise BadInput("not a mapping")
    return JobConfig.from_json(value)
