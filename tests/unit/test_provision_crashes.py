"""``fedhelm provision`` and ``fedhelm pki`` are killed between two files, and run again."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from fedhelm.provision import pki_cli, provision_cli
from fedhelm.provision.provisioned import ProjectFolder
from fedhelm.security.kit import open_kit

TEXT = """\
api_version: 3
name: demo
snapshot_persistor: /shared/demo
participants:
- {name: overseer, type: overseer, org: nvidia}
- {name: server1, type: server, org: nvidia}
- {name: site-1, type: client, org: hospital}
- {name: bob@b.c, type: admin, org: nvidia, role: lead}
"""
SITE = "- {name: site-2, type: client, org: hospital}\n"

# What is killed, and before which of its calls; `when` looks at the call's arguments.
KILLED = """
import os, signal, sys
from fedhelm.provision import pki_cli, provision_cli
from fedhelm.provision.provisioned import ProjectFolder

method, when, command = sys.argv[1:4]
wrapped = getattr(ProjectFolder, method)

def dying(self, *args):
    if when in str(args):
        os.kill(os.getpid(), signal.SIGKILL)
    return wrapped(self, *args)

setattr(ProjectFolder, method, dying)
sys.exit((provision_cli if command == "provision" else pki_cli).main(sys.argv[4:]))
"""


class Office:
    """A folder with ``project.yml`` and a workspace."""

    def __init__(self, folder, capsys):
        self.folder, self._capsys = folder, capsys
        self.file, self.root = folder / "project.yml", folder / "workspace" / "demo"
        self.write(TEXT)

    def write(self, text):
        self.file.write_text(text)

    def words(self, command, *argv):
        if command == "provision":
            return ["-p", str(self.file), "-w", str(self.root.parent), *argv]
        return [command, *argv, "-w", str(self.root)]

    def __call__(self, command, *argv, status=0):
        main = provision_cli.main if command == "provision" else pki_cli.main
        assert main(["-o", "json", *self.words(command, *argv)]) == status
        return json.loads(self._capsys.readouterr().out)["error" if status else "data"]

    def killed(self, method, when, command, *argv):
        """Run a command that is killed before the first call of a method whose arguments have ``when`` in them."""
        words = [sys.executable, "-c", KILLED, method, when, command, *self.words(command, *argv)]
        done = subprocess.run(words, check=False, capture_output=True, timeout=60)
        assert done.returncode == -signal.SIGKILL, done.stderr

    @property
    def state(self):
        return ProjectFolder.open(self.root)

    def listed(self):
        return {one.serial: one.reason for one in self.state.revocation_list().entries}

    def serials(self, name):
        return [one.serial for one in self.state.certificates() if one.name == name]


@pytest.fixture
def office(tmp_path, capsys):
    made = Office(tmp_path, capsys)
    made("provision")
    return made


def test_a_revocation_that_was_killed_before_its_list_is_said_to_be_so_and_repeated(office):
    (serial,) = office.serials("bob@b.c")
    office.killed("write_revocations", "", "revoke", "bob@b.c", "--reason", "stolen")
    (row,) = [row for row in office("list")["certificates"] if row["name"] == "bob@b.c"]
    assert "broke off before it signed the list" in row["state"]
    assert office.state.revocations() is None
    done = office("revoke", "bob@b.c", "--reason", "again")
    assert ([one["serial"] for one in done["revoked"]], done["version"]) == ([serial], 1)
    assert office.listed() == {serial: "stolen"}
    assert "no certificate that still counts" in office("revoke", "bob@b.c", "--reason", "x", status=1)["message"]


def test_a_revocation_that_was_killed_is_finished_by_the_next_of_somebody_else_or_by_provision(office):
    (bob,), (site,) = office.serials("bob@b.c"), office.serials("site-1")
    office.killed("write_revocations", "", "revoke", "bob@b.c", "--reason", "stolen")
    office("revoke", "site-1", "--reason", "broken")
    assert office.listed() == {bob: "stolen", site: "broken"}
    (overseer,) = office.serials("overseer")
    office.killed("write_revocations", "", "revoke", "overseer", "--reason", "moved")
    before = office.state.last_prod
    assert office("provision", "--dry-run")["revoked"] == [{"name": "overseer", "serial": overseer, "reason": "moved"}]
    assert overseer not in office.listed()
    done = office("provision")
    assert [one["name"] for one in done["revoked"]] == ["overseer"]
    assert office.listed()[overseer] == "moved"
    assert (done["changed"], office.state.last_prod, office("provision")["revoked"]) == (False, before, [])


def test_a_role_change_that_was_killed_before_its_list_is_on_it_after_the_next_run(office):
    (lead,) = office.serials("bob@b.c")
    office.write(TEXT.replace("role: lead", "role: member"))
    office.killed("write_revocations", "", "provision")
    assert office.state.revocations() is None
    done = office("provision")
    assert [one["serial"] for one in done["revoked"]] == [lead]
    assert list(office.listed()) == [lead]
    assert open_kit(office.root / "prod_01" / "bob@b.c").role == "member"


def test_a_damaged_list_is_named_and_nothing_is_written_until_it_is_mended(office):
    (bob,), (site,) = office.serials("bob@b.c"), office.serials("site-1")
    office("revoke", "site-1", "--reason", "broken")
    path = office.root / "state" / "revoked.json"
    good, certificates = path.read_bytes(), (office.root / "state" / "certificates.json").read_bytes()
    path.write_bytes(good[:-30])
    for _ in range(2):
        error = office("revoke", "bob@b.c", "--reason", "stolen", status=4)
        assert (error["code"], str(path) in error["message"]) == ("BAD_KIT", True)
        assert (office.root / "state" / "certificates.json").read_bytes() == certificates
    path.write_bytes(good)
    office("revoke", "bob@b.c", "--reason", "stolen")
    assert office.listed() == {bob: "stolen", site: "broken"}


def test_a_site_whose_run_was_killed_after_its_kit_appeared_is_known_and_revoked_when_it_goes(office):
    office.write(TEXT + SITE)
    office.killed("_conclude", "", "provision")
    assert (office.root / "prod_01" / "site-2").is_dir()
    (serial,) = office.serials("site-2")
    assert [row["name"] for row in office("list")["certificates"] if row["serial"] == serial] == ["site-2"]
    assert not office("provision", "--dry-run")["changed"]
    office.write(TEXT)
    done = office("provision")
    assert [one["serial"] for one in done["revoked"]] == [serial]
    assert {one["name"]: one["happens"] for one in done["participants"]}["site-2"] == "removed"
    assert list(office.listed()) == [serial]


def test_a_kit_that_was_handed_out_and_deleted_after_such_a_death_is_not_forgotten(office):
    office.write(TEXT + SITE)
    office.killed("_conclude", "", "provision")
    office("renew", "server1")
    for prod in office.state.prods:
        prod.rename(office.folder / prod.name)
    assert len(office.serials("site-2")) == 1


def test_a_run_that_was_killed_before_its_kits_appeared_gave_nothing_to_anybody(office):
    office.write(TEXT + SITE)
    office.killed("_write", "announced", "provision")
    assert office.serials("site-2") == []
    assert office("provision")["prod"] == "prod_01"
    assert len(office.serials("site-2")) == 1


def test_the_reason_of_a_revocation_by_name_decides_nothing(office):
    for name, reason in (("site-1", "removed from the project"), ("bob@b.c", "role or organisation changed")):
        office("revoke", name, "--reason", reason)
    assert not office("provision")["changed"]
    office.write(TEXT.replace("role: lead", "role: member"))
    rows = {one["name"]: one["happens"] for one in office("provision")["participants"]}
    assert (rows["site-1"], rows["bob@b.c"]) == ("revoked", "revoked")


def test_a_line_of_before_it_said_who_revoked_goes_by_its_reason(office):
    office.write(TEXT + SITE)
    office("provision")
    office.write(TEXT)
    office("provision")
    path = office.root / "state" / "certificates.json"
    path.write_text(path.read_text().replace(',\n      "by": "provision"', ""))
    assert '"by"' not in path.read_text()
    office.write(TEXT + SITE)
    rows = {one["name"]: one["happens"] for one in office("provision")["participants"]}
    assert rows["site-2"] == "new certificate"


def test_a_serial_is_taken_as_openssl_prints_it(office):
    (serial,) = office.serials("bob@b.c")
    padded = serial if len(serial) % 2 == 0 else "0" + serial
    with_colons = ":".join(padded[place : place + 2] for place in range(0, len(padded), 2))
    done = office("revoke", "bob@b.c", "--reason", "x", "--serial", with_colons.upper())
    assert [one["serial"] for one in done["revoked"]] == [serial]
    (site,) = office.serials("site-1")
    assert office("revoke", "site-1", "--reason", "x", "--serial", f"serial={site.upper()}")["version"] == 2
    assert (
        "no certificate with the serial"
        in office("revoke", "site-1", "--reason", "x", "--serial", "", status=1)["message"]
    )


def test_what_a_killed_first_run_left_is_removed_by_the_next_and_what_a_living_one_fills_is_not(tmp_path, capsys):
    made = Office(tmp_path, capsys)
    workspace = made.root.parent
    made.killed("publish", "", "provision")
    (left,) = workspace.iterdir()
    assert (left / "state" / "rootCA.key").is_file()
    living = workspace / ".demo.0123abcd.tmp"
    living.mkdir()
    lock = os.open(living, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    made("provision")
    assert {path.name for path in workspace.iterdir()} == {"demo", living.name}
    os.close(lock)
    assert not made("provision")["changed"]
    assert [path.name for path in workspace.iterdir()] == ["demo"]


def test_kits_of_a_killed_run_are_removed_by_the_next_that_makes_none(office):
    office.write(TEXT + SITE)
    office.killed("publish", "", "provision")
    (draft,) = office.root.glob(".prod_*.tmp")
    assert (draft / "site-2" / "startup" / "client.key").is_file()
    office.write(TEXT)
    assert not office("provision")["changed"]
    assert list(office.root.glob(".prod_*")) == []
