from __future__ import annotations

import io
import os
import socket
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhelm.errors import BadInput, Conflict
from fedhelm.job import bundle


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "hello"
    (root / "app" / "deep" / "er").mkdir(parents=True)
    (root / "job.yaml").write_text("name: hello\n")
    (root / "app" / "train.py").write_text("print('hi')\n")
    (root / "app" / "deep" / "er" / "λ.txt").write_bytes(b"\x00\xff" * 700)
    (root / "app" / "empty").touch()
    return root


def tree(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def hostile(path, *items):
    with tarfile.open(path, "w") as archive:
        for name, kind, content in items:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = content.decode()
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def test_a_folder_comes_back_as_it_was(folder, tmp_path):
    bundle.pack(folder, tmp_path / "b")
    bundle.unpack(tmp_path / "b", tmp_path / "new" / "back")
    assert tree(tmp_path / "new" / "back") == tree(folder)
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["back"]
    assert bundle.read_member(tmp_path / "b", "job.yaml") == b"name: hello\n"


def test_the_same_folder_gives_the_same_bytes(folder, tmp_path):
    bundle.pack(folder, tmp_path / "one")
    other = tmp_path / "copy"
    bundle.unpack(tmp_path / "one", other)
    os.utime(other / "job.yaml", (1, 1))
    (other / "app" / "train.py").chmod(0o700)
    (other / "app" / "__pycache__").mkdir()
    (other / "app" / "__pycache__" / "train.cpython-311.pyc").write_bytes(b"x")
    (other / ".git").mkdir()
    (other / ".git" / "config").write_text("secret")
    (other / ".DS_Store").touch()
    (other / "old.pyc").touch()
    bundle.pack(other, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_packing_leaves_behind_is_named(folder):
    assert not list(bundle.left_behind(folder))
    for name in (".git/config", "app/__pycache__/t.pyc", "app/deep/.x", "old.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert list(bundle.left_behind(folder)) == [".git", "app/__pycache__", "app/deep/.x", "old.pyc"]


def test_a_long_name_travels(folder, tmp_path):
    name = "/".join(["x" * 120] * 3)
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("far")
    bundle.pack(folder, tmp_path / "b")
    assert bundle.read_member(tmp_path / "b", name) == b"far"


def test_links_inside_are_their_content(folder, tmp_path):
    (folder / "again.py").symlink_to("app/train.py")
    (folder / "twin").symlink_to(folder / "app")
    bundle.pack(folder, tmp_path / "b")
    bundle.unpack(tmp_path / "b", tmp_path / "back")
    assert (tmp_path / "back" / "again.py").read_text() == "print('hi')\n"
    assert (tmp_path / "back" / "twin" / "train.py").read_text() == "print('hi')\n"
    assert not any(path.is_symlink() for path in (tmp_path / "back").rglob("*"))


def test_a_job_folder_may_itself_be_a_link(folder, tmp_path):
    (tmp_path / "alias").symlink_to(folder)
    bundle.pack(folder, tmp_path / "a")
    bundle.pack(tmp_path / "alias", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("target", ["/etc/passwd", "/etc", "../secret", "app/../../secret", "..", "../hello-2"])
def test_links_that_lead_out_are_refused_by_name(folder, tmp_path, target):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "hello-2").mkdir()
    (folder / "app" / "leak").symlink_to(target if target.startswith("/") else "../" + target)
    with pytest.raises(BadInput, match="app/leak: the link leads out of the job folder"):
        bundle.pack(folder, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_link_through_a_link_is_followed_to_its_end(folder, tmp_path):
    (tmp_path / "secret").mkdir()
    (folder / "hop").symlink_to("app/hop2")
    (folder / "app" / "hop2").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput, match="leads out of the job folder"):
        bundle.pack(folder, tmp_path / "b")


@pytest.mark.parametrize(
    ("target", "words"), [("gone", "leads nowhere"), ("loop", "leads nowhere"), ("app", "holds it")]
)
def test_links_that_lead_nowhere_or_in_circles_are_refused(folder, tmp_path, target, words):
    (folder / "loop" if target == "loop" else folder / "app" / "l").symlink_to(folder / target)
    with pytest.raises(BadInput, match=words):
        bundle.pack(folder, tmp_path / "b")


def test_what_is_no_file_is_refused(folder, tmp_path):
    os.mkfifo(folder / "pipe")
    with pytest.raises(BadInput, match="pipe: neither a file nor a folder"):
        bundle.pack(folder, tmp_path / "b")


def test_a_socket_is_refused(folder, tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        with pytest.raises(BadInput, match="neither"):
            bundle.pack(folder, tmp_path / "b")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match="nothing: no such job folder"):
        bundle.pack(tmp_path / "nothing", tmp_path / "b")


def test_names_that_are_not_utf8_are_refused(folder, tmp_path):
    os.close(os.open(os.fsencode(folder) + b"/\xff", os.O_CREAT))
    with pytest.raises(BadInput, match="UTF-8"):
        bundle.pack(folder, tmp_path / "b")


def test_caps_hold_on_both_sides(folder, tmp_path, monkeypatch):
    bundle.pack(folder, tmp_path / "b")
    for cap, value in (("MAX_FILES", 2), ("MAX_BYTES", 1000)):
        with monkeypatch.context() as patch:
            patch.setattr(bundle, cap, value)
            with pytest.raises(BadInput, match=f"more than {value}"):
                bundle.pack(folder, tmp_path / "c")
            with pytest.raises(BadInput, match=f"more than {value}"):
                bundle.unpack(tmp_path / "b", tmp_path / "back")
            assert not (tmp_path / "back").exists()


FILE = tarfile.REGTYPE
BAD = {
    "absolute": [("/tmp/evil", FILE, b"x")],
    "up": [("../evil", FILE, b"x")],
    "up in the middle": [("a/../../evil", FILE, b"x")],
    "dot": [("./a", FILE, b"x")],
    "double slash": [("a//b", FILE, b"x")],
    "backslash": [("a\\b", FILE, b"x")],
    "newline": [("a\nb", FILE, b"x")],
    "too deep": [("/".join("a" * 40), FILE, b"x")],
    "too long a part": [("a" * 300, FILE, b"x")],
    "too long": [("/".join(["a" * 200] * 7), FILE, b"x")],
    "symlink": [("a", tarfile.SYMTYPE, b"/etc")],
    "symlink, then through it": [("a", tarfile.SYMTYPE, b"/tmp"), ("a/b", FILE, b"x")],
    "hard link": [("a", tarfile.LNKTYPE, b"/etc/passwd")],
    "device": [("a", tarfile.CHRTYPE, b"")],
    "pipe": [("a", tarfile.FIFOTYPE, b"")],
    "folder": [("a", tarfile.DIRTYPE, b"")],
    "contiguous": [("a", tarfile.CONTTYPE, b"")],
    "twice": [("a", FILE, b"x"), ("a", FILE, b"y")],
    "file and folder": [("a", FILE, b"x"), ("a/b", FILE, b"y")],
    "folder and file": [("a/b", FILE, b"x"), ("a", FILE, b"y")],
    "case": [("a/Train.py", FILE, b"x"), ("a/train.py", FILE, b"y")],
    "case of a folder": [("App/x", FILE, b"x"), ("app/y", FILE, b"y")],
    "case of a folder and a file": [("App/x", FILE, b"x"), ("app", FILE, b"y")],
    "accents": [("caf\u00e9", FILE, b"x"), ("cafe\u0301", FILE, b"y")],
    "accents of a folder": [("caf\u00e9/x", FILE, b"x"), ("cafe\u0301/y", FILE, b"y")],
    "case and accents": [("CAF\u00c9", FILE, b"x"), ("cafe\u0301", FILE, b"y")],
    "sharp s": [("stra\u00dfe", FILE, b"x"), ("STRASSE", FILE, b"y")],
    "hidden": [("app/.hidden", FILE, b"x")],
    "in a hidden folder": [(".git/config", FILE, b"x")],
    "byte code": [("app/helper.pyc", FILE, b"x")],
    "byte code beside its source": [("app/__pycache__/helper.cpython-311.pyc", FILE, b"x")],
    "in a folder for byte code": [("__pycache__/helper.py", FILE, b"x")],
}


@pytest.mark.parametrize("case", BAD)
def test_hostile_archives_are_refused_and_leave_nothing(tmp_path, case):
    path = hostile(tmp_path / "b", ("fine", FILE, b"x"), *BAD[case])
    with pytest.raises(BadInput, match="b: not a bundle"):
        bundle.unpack(path, tmp_path / "back")
    with pytest.raises(BadInput):
        bundle.read_member(path, "fine")
    assert [one.name for one in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("one", "other"), [("app/Train.py", "app/train.py"), ("App/more.py", "app/train.py"), ("caf\u00e9", "cafe\u0301")]
)
def test_names_that_are_one_elsewhere_are_refused_before_anything_is_packed(folder, tmp_path, one, other):
    for name in (one, other):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    with pytest.raises(BadInput, match="are one name on some file systems: rename one of them") as raised:
        bundle.pack(folder, tmp_path / "b")
    assert raised.value.message.startswith(f"{folder}: ")
    assert not (tmp_path / "b").exists()


def test_the_same_folder_again_and_other_names_are_no_collision(folder, tmp_path):
    for name in ("App.py", "app/er", "app/deep/ER2", "\u00e9", "e"):
        (folder / name).write_text("x")
    bundle.pack(folder, tmp_path / "b")
    bundle.unpack(tmp_path / "b", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(folder)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_compressed_archives_are_no_bundles(tmp_path, mode):
    with tarfile.open(tmp_path / "b", mode) as archive:
        archive.addfile(tarfile.TarInfo("a"))
    with pytest.raises(BadInput, match="not a bundle"):
        bundle.unpack(tmp_path / "b", tmp_path / "back")


def test_a_sparse_member_that_grows_is_refused(tmp_path):
    info = tarfile.TarInfo("a")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 40), "GNU.sparse.name": "a"}
    with tarfile.open(tmp_path / "b", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    with pytest.raises(BadInput):
        bundle.unpack(tmp_path / "b", tmp_path / "back")


def test_a_bundle_cut_short_is_refused(folder, tmp_path):
    bundle.pack(folder, tmp_path / "b")
    content = (tmp_path / "b").read_bytes()
    for size in (100, 600, 1500):
        (tmp_path / "b").write_bytes(content[:size])
        with pytest.raises(BadInput):
            bundle.unpack(tmp_path / "b", tmp_path / "back")
        assert not (tmp_path / "back").exists()


def test_a_target_in_use_stays_as_it_is(folder, tmp_path):
    bundle.pack(folder, tmp_path / "b")
    with pytest.raises(Conflict, match="hello"):
        bundle.unpack(tmp_path / "b", folder)
    (tmp_path / "empty").mkdir()
    bundle.unpack(tmp_path / "b", tmp_path / "empty")
    assert tree(tmp_path / "empty") == tree(folder)


def test_a_member_that_is_missing_or_too_large_is_refused(tmp_path):
    path = hostile(tmp_path / "b", ("big", FILE, b"x" * (1 << 21)))
    with pytest.raises(BadInput, match=r"no job\.yaml in the bundle"):
        bundle.read_member(path, "job.yaml")
    with pytest.raises(BadInput, match="big: 2097152 bytes"):
        bundle.read_member(path, "big")
    assert len(bundle.read_member(path, "big", limit=1 << 21)) == 1 << 21


def test_a_large_member_is_handed_over_in_pieces(tmp_path):
    path = hostile(tmp_path / "b", ("a", FILE, b"x"), ("big", FILE, b"12" * (1 << 20)))
    pieces = []
    assert bundle.copy_member(path, "big", pieces.append) == 1 << 21
    assert len(pieces) > 1
    assert b"".join(pieces) == b"12" * (1 << 20)
    with pytest.raises(BadInput, match="no c in"):
        bundle.copy_member(path, "c", pieces.append)


NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=12
) | st.sampled_from(["..", "../x", "/x", "a", "a/b", "a/../b", "./a", "a/"])
KINDS = st.sampled_from([FILE, FILE, FILE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"Z"])


@given(st.lists(st.tuples(NAMES, KINDS, st.binary(max_size=20)), max_size=5))
def test_nothing_ever_lands_outside_the_target(tmp_path_factory, items):
    root = tmp_path_factory.mktemp("h")
    path = hostile(root / "b", *items)
    try:
        bundle.unpack(path, root / "in" / "back")
    except BadInput:
        assert not (root / "in" / "back").exists()
    else:
        assert set(tree(root / "in" / "back").values()) == {content for _, _, content in items}
    assert {one.name for one in root.iterdir()} <= {"b", "in"}
    assert {one.name for one in (root / "in").iterdir()} <= {"back"}


@given(st.data())
def test_changed_bytes_never_crash(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("h")
    path = hostile(root / "b", ("a", FILE, b"1" * 600), ("c/d", FILE, b"2"), ("λ" * 60, FILE, b"3"))
    content = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, 5 * 512), min_size=1, max_size=8)):
        content[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # with a valid checksum the reader looks at what is inside
        content[148:156] = b" " * 8
        content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    try:
        bundle.unpack(path, root / "back")
    except BadInput:
        assert not (root / "back").exists()
    assert {one.name for one in root.iterdir()} <= {"b", "back"}
