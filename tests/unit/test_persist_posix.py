"""The store in a directory: modes, litter, damage, failures at each step, and real processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedhelm.errors import Corrupt, SlotTaken, StoreUnavailable
from fedhelm.persist.blobs import BlobReader, BlobRef, BlobWriter, Manifest, blake3_hex
from fedhelm.persist.log import Log
from fedhelm.persist.posix import PosixBlobStore, PosixLogStore, make_layout
from fedhelm.persist.record import MAX_RECORD_BYTES, By, Draft
from tests.fakes.persist_files import FaultyFiles

OWNER = "jobs/k7m3tq4w9zpx/0-1/sites"
CHUNK = 1024
GENESIS = Draft("genesis", 0, By("provision", "p"), {"cluster": "c", "project": "p"})
FENCE = Draft("fence", 1, By("server1", "a"), {"cause": "test"})


@pytest.fixture
def root(tmp_path) -> Path:
    make_layout(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles()


def litter(root: Path) -> list[str]:
    return [path.name for path in (root / "tmp").iterdir()]


def write(store, data: bytes, owner: str = OWNER) -> BlobRef:
    writer = BlobWriter(store, owner)
    writer.write(data)
    return writer.finish()


def put(number: int) -> Draft:
    return Draft("contribution", 1, FENCE.by, {"items": [number]})


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestFiles:
    def test_files_and_directories_are_for_the_owner_alone(self, root):
        before = os.umask(0)
        try:
            make_layout(root / "other")
            Log(PosixLogStore(root)).append(GENESIS)
            write(PosixBlobStore(root), b"data")
        finally:
            os.umask(before)
        for path in [root, *root.rglob("*")]:
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path

    def test_the_names_are_those_of_the_format(self, root):
        Log(PosixLogStore(root)).append(GENESIS)
        ref = write(PosixBlobStore(root), b"data")
        assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == {
            "log/0000000000000000",
            f"blobs/{OWNER}/c-{blake3_hex(b'data')}",
            f"blobs/{OWNER}/m-{ref.digest}",
        }

    def test_foreign_files_in_the_log_are_no_slots(self, root):
        (root / "log" / "0000000000000007.tmp").touch()
        (root / "log" / ".nfs0001").touch()
        assert PosixLogStore(root).highest() is None

    def test_an_append_costs_two_fsyncs(self, root, files):
        log = Log(PosixLogStore(root, files))
        log.append(GENESIS)
        assert files.fsyncs() == 2
        assert [step for step, _ in files.steps] == ["write", "link", "sync_directory"]
        assert files.steps[-1] == ("sync_directory", "log")

    def test_a_blob_of_one_chunk_in_a_known_folder_costs_three_fsyncs(self, root, files):
        store = PosixBlobStore(root, CHUNK, files)
        write(store, b"first")
        # Two files, the folder, and the four directories that hold the new folders' names.
        assert files.fsyncs() == 2 + 1 + 4
        files.steps.clear()
        write(store, b"second")
        assert [step for step, _ in files.steps] == ["write", "link", "write", "link", "sync_directory"]

    def test_a_blob_that_another_process_began_is_durable_when_it_is_finished(self, root, files):
        write(PosixBlobStore(root, CHUNK), b"data")
        write(PosixBlobStore(root, CHUNK, files), b"data")
        assert [name for step, name in files.steps if step == "sync_directory"] == [
            "sites",
            "blobs",
            "jobs",
            "k7m3tq4w9zpx",
            "0-1",
        ]
        assert len(files.steps) == 5

    def test_an_oversized_slot_does_not_fill_the_memory(self, root):
        with (root / "log" / f"{0:016d}").open("wb") as file:
            file.truncate(10 * MAX_RECORD_BYTES)
        data = PosixLogStore(root).read(0)
        assert data is not None
        assert len(data) == MAX_RECORD_BYTES + 1
        with pytest.raises(Corrupt, match="slot 0: larger"):
            Log(PosixLogStore(root)).read_new()


class TestFailures:
    """Whatever fails, the path is named, nothing is left in tmp/, and the next try works."""

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ENOENT, errno.EDQUOT, errno.ESTALE])
    @pytest.mark.parametrize("step", ["write", "link", "sync_directory"])
    def test_of_an_append(self, root, files, step, number):
        log = Log(PosixLogStore(root, files))
        log.append(GENESIS)
        files.fail[step] = number
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=str(root / "log")) as caught:
                log.append(FENCE)
            assert os.strerror(number) in caught.value.message
            assert litter(root) == []
            assert log.next_seq == 1
        files.fail.clear()
        record = log.append(FENCE)
        assert record.seq == 1
        reader = Log(PosixLogStore(root))
        assert reader.read_new().records[1:] == [record]

    @pytest.mark.parametrize("step", ["linked", "sync_directory"])
    def test_of_an_append_that_did_land(self, root, files, step):
        log = Log(PosixLogStore(root, files))
        log.append(GENESIS)
        files.fail[step] = errno.EIO
        with pytest.raises(StoreUnavailable):
            log.append(FENCE)
        files.fail.clear()
        files.steps.clear()
        assert [record.kind for record in log.read_new().records] == ["fence"]
        assert files.steps == [("sync_directory", "log"), ("sync_directory", "marks")]
        assert log.leads(1, FENCE.by)

    def test_a_taken_slot_is_durable_before_it_is_said_to_be_taken(self, root, files):
        PosixLogStore(root).create(0, b"x")
        with pytest.raises(SlotTaken):
            PosixLogStore(root, files).create(0, b"y")
        assert files.steps[-1] == ("sync_directory", "log")
        assert litter(root) == []

    @pytest.mark.parametrize("step", ["write", "link", "sync_directory"])
    def test_of_a_blob(self, root, files, step):
        store = PosixBlobStore(root, CHUNK, files)
        data = os.urandom(2 * CHUNK + 1)
        files.fail[step] = errno.ENOSPC
        with pytest.raises(StoreUnavailable, match=str(root / "blobs")):
            write(store, data)
        assert litter(root) == []
        files.fail.clear()
        assert BlobReader(store, write(store, data)).read() == data

    def test_a_finish_that_failed_may_be_called_again(self, root, files):
        store = PosixBlobStore(root, CHUNK, files)
        writer = BlobWriter(store, OWNER)
        writer.write(b"x" * (CHUNK + 5))
        for step in ("write", "link", "sync_directory"):
            files.fail = {step: errno.ENOSPC}
            with pytest.raises(StoreUnavailable):
                writer.finish()
        files.fail = {}
        assert BlobReader(store, writer.finish()).read() == b"x" * (CHUNK + 5)
        with pytest.raises(ValueError, match="finished"):
            writer.write(b"more")

    def test_a_directory_that_is_not_mounted_is_unavailable_not_empty(self, root):
        log, blobs = Log(PosixLogStore(root)), PosixBlobStore(root, CHUNK)
        log.append(GENESIS)
        ref = write(blobs, b"data")
        manifest = blobs.manifest(ref)
        root.rename(root.parent / "elsewhere")
        root.mkdir()
        for call in (
            log.read_new,
            Log(PosixLogStore(root)).read_new,
            PosixLogStore(root).highest,
            lambda: log.append(FENCE),
            lambda: log.at(0),
            lambda: blobs.manifest(ref),
            lambda: blobs.missing(OWNER, manifest),
            lambda: blobs.read_chunk(OWNER, manifest.chunks[0]),
            lambda: blobs.read_part(OWNER, manifest.chunks[0], 0, memoryview(bytearray(1))),
            lambda: write(blobs, b"more"),
        ):
            with pytest.raises(StoreUnavailable, match=str(root)):
                call()
        assert list(root.iterdir()) == []
        root.rmdir()
        (root.parent / "elsewhere").rename(root)
        assert log.append(FENCE).seq == 1
        assert BlobReader(blobs, ref).read() == b"data"


class TestDamagedBlobs:
    """A changed, shortened or lost file is found wherever it is read."""

    @pytest.fixture
    def store(self, root):
        return PosixBlobStore(root, CHUNK)

    @pytest.fixture
    def ref(self, store):
        return write(store, bytes(range(256)) * 8 + b"tail")

    def paths(self, root, store, ref):
        folder = root / "blobs" / OWNER
        return [folder / f"c-{digest}" for digest in store.manifest(ref).chunks], folder / f"m-{ref.digest}"

    def readings(self, store, ref):
        """Every way to touch the first chunk."""
        whole = memoryview(bytearray(CHUNK))
        part = memoryview(bytearray(10))
        digest = store.manifest(ref).chunks[0]
        return [
            lambda: store.read_chunk(OWNER, digest),
            lambda: BlobReader(store, ref).read(),
            lambda: BlobReader(store, ref).read_into(0, whole),
            lambda: BlobReader(store, ref).read_into(0, part),
            lambda: BlobReader(store, ref).read_into(CHUNK - 10, part),
            lambda: BlobReader(store, ref).read_into(CHUNK - 5, part),
        ]

    @pytest.mark.parametrize("position", [0, 500, CHUNK - 1])
    def test_a_flipped_bit_of_a_chunk(self, root, store, ref, position):
        chunk = self.paths(root, store, ref)[0][0]
        data = bytearray(chunk.read_bytes())
        data[position] ^= 1
        chunk.write_bytes(data)
        for read in self.readings(store, ref):
            with pytest.raises(Corrupt):
                read()
        BlobReader(store, ref).read(2 * CHUNK, 4)  # the others are as good as before

    @pytest.mark.parametrize("length", [0, 1, CHUNK - 1])
    def test_a_shortened_chunk(self, root, store, ref, length):
        os.truncate(self.paths(root, store, ref)[0][0], length)
        for read in self.readings(store, ref):
            with pytest.raises(Corrupt):
                read()
        with pytest.raises(Corrupt):
            store.missing(OWNER, store.manifest(ref))

    def test_a_lost_chunk(self, root, store, ref):
        self.paths(root, store, ref)[0][0].unlink()
        for read in self.readings(store, ref):
            with pytest.raises(Corrupt, match="missing"):
                read()
        assert store.missing(OWNER, store.manifest(ref)) == [0]

    def test_a_damaged_or_lost_manifest(self, root, store, ref):
        path = self.paths(root, store, ref)[1]
        good = path.read_bytes()
        for bad in (good[:-1], good + b" ", good.replace(b"1024", b"1025"), b""):
            path.write_bytes(bad)
            with pytest.raises(Corrupt, match=ref.digest):
                BlobReader(store, ref)
        path.unlink()
        with pytest.raises(Corrupt, match="missing"):
            store.manifest(ref)

    @pytest.mark.parametrize(
        "hostile",
        [b"[]", b"not json", b"\xff", b'{"size":-1,"chunk_size":1,"chunks":[]}', b'{"size":1,"chunk_size":0,"chunks":[]}', b"[" * 100_000],
        ids=["list", "text", "bytes", "negative", "zero", "deep"],
    )  # fmt: skip
    def test_a_hostile_manifest_with_a_right_digest(self, root, store, ref, hostile):
        digest = blake3_hex(hostile)
        (root / "blobs" / OWNER / f"m-{digest}").write_bytes(hostile)
        with pytest.raises(Corrupt, match=digest):
            store.manifest(BlobRef(OWNER, digest, 1))


def test_a_reader_keeps_no_file_open_and_reads_into_the_callers_memory(root):
    store = PosixBlobStore(root, CHUNK)
    data = os.urandom(8 * CHUNK)
    readers = [BlobReader(store, write(store, data)) for _ in range(50)]
    before = open_files()
    buffer = bytearray(b"#" * (2 * CHUNK + 2))
    for reader in readers:
        reader.read_into(CHUNK // 2, memoryview(buffer)[1:-1])
    assert open_files() == before
    assert bytes(buffer) == b"#" + data[CHUNK // 2 : CHUNK // 2 + 2 * CHUNK] + b"#"


def test_a_manifest_of_another_chunk_size_than_the_stores_is_read(root):
    data = os.urandom(3000)
    ref = write(PosixBlobStore(root, 512), data)
    store = PosixBlobStore(root, CHUNK)
    assert store.manifest(ref) == Manifest(
        3000, 512, tuple(blake3_hex(data[at : at + 512]) for at in range(0, 3000, 512))
    )
    assert BlobReader(store, ref).read(100, 2000) == data[100:2100]


RACER = """
import sys
from pathlib import Path
from fedhelm.errors import SlotTaken
from fedhelm.persist.posix import PosixLogStore
store, me = PosixLogStore(Path(sys.argv[1])), sys.argv[2]
for line in sys.stdin:
    seq = int(line)
    try:
        store.create(seq, me.encode())
        sys.stdout.write("won\\n")
    except SlotTaken:
        sys.stdout.write("lost\\n")
    sys.stdout.flush()
"""

APPENDER = """
import sys
from pathlib import Path
from fedhelm.persist.log import Log
from fedhelm.persist.posix import PosixLogStore
from fedhelm.persist.record import By, Draft
log, epoch = Log(PosixLogStore(Path(sys.argv[1]))), int(sys.argv[2])
log.read_new()
by = By("server1", f"life-{epoch}")
log.append(Draft("fence", epoch, by, {"cause": "test"}))
while True:
    record = log.append(Draft("contribution", epoch, by, {"items": ["x" * 3000]}))
    sys.stdout.write(f"{record.seq} {record.sha256}\\n")
    sys.stdout.flush()
"""


def spawn(script: str, *arguments: object) -> subprocess.Popen[str]:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.processes
def test_of_racing_processes_exactly_one_wins_each_slot(root):
    racers = [spawn(RACER, root, f"racer-{index}") for index in range(3)]
    try:
        for seq in range(40):
            for racer in racers:
                racer.stdin.write(f"{seq}\n")
                racer.stdin.flush()
            answers = [racer.stdout.readline().strip() for racer in racers]
            assert sorted(answers) == ["lost", "lost", "won"]
            assert PosixLogStore(root).read(seq) == f"racer-{answers.index('won')}".encode()
        assert litter(root) == []
    finally:
        for racer in racers:
            racer.communicate(timeout=30)


@pytest.mark.processes
def test_a_killed_writer_loses_nothing_it_acknowledged(root):
    Log(PosixLogStore(root)).append(GENESIS)
    acknowledged: dict[int, str] = {}
    for epoch in range(1, 6):
        writer = spawn(APPENDER, root, epoch)
        try:
            for _ in range(5 * epoch):
                seq, sha256 = writer.stdout.readline().split()
                acknowledged[int(seq)] = sha256
            writer.send_signal(signal.SIGKILL)
            rest = writer.communicate(timeout=30)[0]
        finally:
            writer.kill()
            writer.wait(30)
        for line in rest.splitlines(keepends=True):
            if line.endswith("\n"):
                seq, sha256 = line.split()
                acknowledged[int(seq)] = sha256
        log = Log(PosixLogStore(root))
        found = {record.seq: record.sha256 for record in log.read_new().records}
        assert acknowledged.items() <= found.items()
        assert log.epoch == epoch
    assert len(acknowledged) >= 75
