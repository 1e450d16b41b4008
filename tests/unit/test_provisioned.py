from __future__ import annotations

import fcntl
import os
import stat

import pytest

from fedhelm.errors import Conflict, DeadlineExceeded, KitError, NotFound, WorkspaceExists
from fedhelm.provision.issued import IssuedCertificate
from fedhelm.provision.provisioned import ProjectFolder
from tests.fakes.provision_clock import FixedClock


@pytest.fixture
def folder(tmp_path):
    return ProjectFolder.create(tmp_path / "demo", "demo")


def issue(folder, name, role="site", version=1, prod=None):
    cert = folder.authority().issue(role, name, "nvidia").cert
    return IssuedCertificate.of(cert, "demo", version, prod)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_project_has_a_root_and_nothing_else(folder, tmp_path):
    again = ProjectFolder.open(tmp_path / "demo")
    assert (again.project, again.cluster, again.last_prod, again.prods) == ("demo", folder.cluster, None, [])
    assert (again.certificates(), again.revocations(), again.kit_version) == ([], None, 0)
    assert mode(folder.state) == 0o700
    assert {path.name: mode(path) for path in folder.state.iterdir()} == {
        "project.json": 0o600,
        "certificates.json": 0o600,
        "rootCA.key": 0o600,
        "rootCA.pem": 0o644,
    }
    with pytest.raises(WorkspaceExists):
        ProjectFolder.create(tmp_path / "demo", "demo")


def test_what_is_no_project_says_so(tmp_path):
    with pytest.raises(NotFound, match="no provisioned project"):
        ProjectFolder.open(tmp_path)
    folder = ProjectFolder.create(tmp_path / "p", "p")
    for text in ("{", "[]", '{"format": 2, "project": "p", "cluster": "c"}', "[" * 100_000):
        (folder.state / "project.json").write_text(text)
        with pytest.raises(KitError, match=r"project\.json"):
            ProjectFolder.open(folder.root)


def test_the_root_key_is_encrypted_under_the_passphrase(tmp_path):
    folder = ProjectFolder.create(tmp_path / "p", "p", passphrase=b"open sesame, please")
    assert folder.root_is_encrypted
    assert folder.authority(b"open sesame, please").cert_pem == folder.trust.read_bytes()
    for wrong in (None, b"guess"):
        with pytest.raises(KitError):
            folder.authority(wrong)
    assert not ProjectFolder.create(tmp_path / "q", "q").root_is_encrypted


def test_certificates_are_remembered_with_who_they_are_of(folder):
    folder.record(issue(folder, "site-1"), issue(folder, "a@b.c", "lead", version=4))
    one, two = ProjectFolder.open(folder.root).certificates()
    assert (one.role, one.name, one.org, one.revoked) == ("site", "site-1", "nvidia", False)
    assert (two.role, two.name, two.kit_version) == ("lead", "a@b.c", 4)
    assert folder.kit_version == 4
    assert folder.current("a@b.c") == two
    assert folder.current("nobody") is None
    with pytest.raises(Conflict, match=one.serial):
        folder.record(one)


def test_a_kit_version_is_given_once(folder):
    assert [folder.take_kit_version() for _ in range(3)] == [1, 2, 3]
    folder.record(issue(folder, "site-1", version=8))
    assert ProjectFolder.open(folder.root).take_kit_version() == 9


def test_a_prod_appears_whole_and_is_the_last(folder):
    (folder.draft(0) / "site-1").mkdir()
    assert folder.prods == []
    new = issue(folder, "site-1", prod=0)
    path = folder.publish(0, [new], {"site-1": "abc"})
    assert (path.name, [one.name for one in folder.prods]) == ("prod_00", ["prod_00"])
    again = ProjectFolder.open(folder.root)
    assert (again.last_prod, again.kit_digests, again.certificates()) == (0, {"site-1": "abc"}, [new])


def test_what_a_broken_run_issued_was_given_to_nobody(folder):
    (folder.draft(0) / "rest").mkdir()
    folder.record(issue(folder, "site-1", prod=0))  # and here the machine lost its power
    again = ProjectFolder.open(folder.root)
    assert again.certificates() == []
    assert list(again.draft(0).iterdir()) == []
    new = issue(folder, "site-1", prod=0)
    again.publish(0, [new], {})
    assert ProjectFolder.open(folder.root).certificates() == [new]


def test_a_run_that_broke_after_the_folder_appeared_is_known(folder):
    folder.draft(0)
    new = issue(folder, "site-1", prod=0)
    folder.record(new)
    (folder.root / ".prod_00.tmp").rename(folder.prod(0))  # project.json was not written any more
    again = ProjectFolder.open(folder.root)
    assert (again.last_prod, again.certificates()) == (0, [new])


def test_certificates_count_when_their_kits_were_handed_out_and_deleted(folder):
    folder.draft(0)
    new = issue(folder, "site-1", prod=0)
    folder.publish(0, [new], {})
    folder.prod(0).rmdir()
    again = ProjectFolder.open(folder.root)
    assert (again.last_prod, again.certificates(), again.prods) == (0, [new], [])


def test_what_is_revoked_stands_in_a_list_that_the_root_signed(folder):
    clock = FixedClock()
    site, admin = issue(folder, "site-1"), issue(folder, "a@b.c", "lead")
    folder.record(site, admin)
    authority = folder.authority()
    (revoked,) = folder.revoke([site.serial], "key lost", authority, clock=clock)
    assert (revoked.reason, revoked.revoked_at) == ("key lost", "2026-01-01T00:00:00.000Z")
    first = folder.revocation_list()
    assert (first.version, [one.serial for one in first.entries]) == (1, [site.serial])
    assert folder.current("site-1") is None
    assert folder.revoke([site.serial], "again", authority) == []
    assert folder.revocation_list().version == 1
    folder.revoke([admin.serial, site.serial], "left", authority, clock=clock)
    second = folder.revocation_list()
    assert second.newer_than(first)
    assert [(one.serial, one.reason) for one in second.entries] == [(site.serial, "key lost"), (admin.serial, "left")]
    with pytest.raises(NotFound, match="no certificate has the serial ff"):
        folder.revoke(["ff"], "x", authority)


def test_a_list_that_was_not_written_after_a_crash_comes_with_the_next(folder):
    site, admin = issue(folder, "site-1"), issue(folder, "a@b.c", "lead")
    folder.record(site, admin)
    folder.revoke([site.serial], "x", folder.authority())
    (folder.state / "revoked.json").unlink()
    folder.revoke([site.serial], "x", folder.authority())
    assert [one.serial for one in folder.revocation_list().entries] == [site.serial]


def test_a_damaged_list_of_certificates_is_named(folder):
    (folder.state / "certificates.json").write_text('{"certificates": [{"serial": 1}]}')
    with pytest.raises(KitError, match=r"certificates\.json: not a list"):
        folder.certificates()
    (folder.state / "certificates.json").unlink()
    with pytest.raises(KitError, match=r"certificates\.json"):
        folder.certificates()


def test_keys_are_kept_for_their_owner_alone(folder):
    assert folder.kept_key("site-1") is None
    folder.keep_key("site-1", b"secret")
    assert folder.kept_key("site-1") == b"secret"
    assert mode(folder.state / "keys" / "site-1.key") == 0o600
    assert mode(folder.state / "keys") == 0o700


def test_only_one_run_works_on_a_project(folder):
    with folder.locked(), folder.locked():
        other = ProjectFolder.open(folder.root)
        with pytest.raises(DeadlineExceeded, match="another run"), other.locked(timeout=0.05):
            pass
    descriptor = os.open(folder.state / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it was given back
    os.close(descriptor)
