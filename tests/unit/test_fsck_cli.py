"""`fedhelm fsck`, `backup` and `restore` as commands, on a store that nobody serves."""

from __future__ import annotations

import json

import pytest

from fedhelm.persist import By, Draft, open_store
from fedhelm.process import ParticipantLock
from fedhelm_lab import backup_cli, fsck_cli
from fedhelm_lab.workspace import Workspace, plan, prepare
from fedhelm_overseer.lease import Holder
from fedhelm_overseer.lease_copy import opened
from fedhelm_overseer.lease_store import SqlLeaseStore
from tests.support.federation import free_base_port


@pytest.fixture
def workspace(tmp_path):
    made = prepare(tmp_path / "poc", plan(1, 2, free_base_port(5)))
    kit = made.kit("server1")
    log = open_store(kit.store, kit.cluster).log
    log.read_new()
    for epoch in range(1, 4):
        log.append(Draft("fence", epoch, By("server1", f"{epoch:016x}"), {"cause": "test", "time": "-"}))
    return made


def run(capsys, command, *words):
    status = command([str(word) for word in (*words, "-o", "json")])
    return status, json.loads(capsys.readouterr().out)


def spoil(folder, slot):
    path = folder / "store" / "log" / f"{slot:016d}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    return path


def lead(workspace, log_seq):
    holder = Holder("server1", "f" * 16)
    with opened(workspace.kit("overseer")) as (engines, key):
        store = SqlLeaseStore(engines, key)
        store.grant(store.read(), 3, holder, "test", "2026-01-01T00:00:00Z", keep_intent=False)
        store.activate(3, holder, log_seq, "2026-01-01T00:00:00Z", None)


def test_a_sound_store_is_called_so(workspace, capsys):
    status, answer = run(capsys, fsck_cli.main, "-w", workspace.root)
    assert (status, answer["data"]["sound"], answer["data"]["findings"]) == (0, True, [])
    assert answer["data"]["end"] == 4


def test_a_damaged_slot_is_named_and_mended_from_a_backup(workspace, capsys, tmp_path):
    run(capsys, backup_cli.main_backup, tmp_path / "copy", "-w", workspace.root)
    path = spoil(workspace.root, 2)
    status, answer = run(capsys, fsck_cli.main, "--kit", workspace.kit("server2").root)
    assert status == 1
    assert [one["path"] for one in answer["data"]["findings"]] == ["log/" + path.name]
    status, answer = run(capsys, fsck_cli.main, "-w", workspace.root, "--repair")
    assert status == 1
    assert "can only be mended from a backup" in answer["data"]["done"][0]
    status, answer = run(capsys, fsck_cli.main, "-w", workspace.root, "--repair", "--from", tmp_path / "copy")
    assert (status, len(answer["data"]["done"])) == (0, 1)
    kit = workspace.kit("server1")
    assert len(open_store(kit.store, kit.cluster).log.read_new().records) == 4


def test_nothing_is_mended_while_a_server_runs(workspace, capsys):
    lock = ParticipantLock(workspace.kit("server2").run)
    lock.acquire()
    try:
        status, answer = run(capsys, fsck_cli.main, "-w", workspace.root, "--repair")
    finally:
        lock.release()
    assert (status, answer["error"]["code"]) == (1, "ALREADY_RUNNING")
    assert "server2" in answer["error"]["message"]


def test_a_damaged_last_slot_is_cut_off_only_if_its_loss_is_accepted(workspace, capsys):
    spoil(workspace.root, 3)
    status, _ = run(capsys, fsck_cli.main, "-w", workspace.root, "--repair")
    assert status == 1
    status, answer = run(capsys, fsck_cli.main, "-w", workspace.root, "--repair", "--accept-loss")
    assert (status, answer["data"]["end"]) == (0, 3)


def test_the_lease_is_told_of_a_log_that_was_cut_so_that_a_server_can_lead_again(workspace, capsys):
    lead(workspace, log_seq=3)
    spoil(workspace.root, 3)
    _, answer = run(capsys, fsck_cli.main, "-w", workspace.root, "--repair", "--accept-loss")
    assert answer["data"]["done"][-1] == "the lease was told that the log ends with slot 2; it said 3"
    with opened(workspace.kit("overseer")) as (engines, key):
        row = SqlLeaseStore(engines, key).read()
    assert (row.epoch, row.state, row.log_seq, row.cause) == (3, "released", 2, "the log was cut")
    _, answer = run(capsys, fsck_cli.main, "-w", workspace.root, "--repair")
    assert answer["data"]["done"] == []


def test_an_older_copy_of_the_store_is_found_out_and_never_taken_for_the_newest(workspace, capsys):
    lead(workspace, log_seq=3)
    (workspace.root / "store" / "log" / f"{3:016d}").unlink()
    for words in ((), ("--repair",)):
        status, answer = run(capsys, fsck_cli.main, "-w", workspace.root, *words)
        assert (status, answer["data"]["sound"], answer["data"]["done"]) == (1, False, [])
        (finding,) = answer["data"]["findings"]
        assert finding["path"] == f"log/{3:016d}"
        assert "the lease knows of slots up to 3, the log ends with 2" in finding["problem"]
    with opened(workspace.kit("overseer")) as (engines, key):
        row = SqlLeaseStore(engines, key).read()
    assert (row.state, row.log_seq) == ("active", 3)
    status, answer = run(capsys, fsck_cli.main, "-w", workspace.root, "--repair", "--accept-loss")
    assert (status, len(answer["data"]["done"])) == (0, 1)


def test_while_the_lease_does_not_answer_a_store_is_looked_over_and_nothing_restored_or_given_up(
    workspace, capsys, tmp_path
):
    run(capsys, backup_cli.main_backup, tmp_path / "copy", "-w", workspace.root)
    path = workspace.kit("overseer").local / "overseer.json"
    path.write_text(json.dumps({"lease_store": f"postgresql://nobody@127.0.0.1:{free_base_port(1)}/none"}))
    status, answer = run(capsys, fsck_cli.main, "-w", workspace.root)
    assert (status, answer["data"]["sound"]) == (0, True)
    assert "does not answer" in answer["data"]["done"][0]
    for command, words in (
        (backup_cli.main_restore, (tmp_path / "copy", "--replace")),
        (fsck_cli.main, ("--repair", "--accept-loss")),
    ):
        status, answer = run(capsys, command, *words, "-w", workspace.root)
        assert (status, answer["error"]["code"]) == (1, "STORE_UNAVAILABLE")
    kit = workspace.kit("server1")
    assert len(open_store(kit.store, kit.cluster).log.read_new().records) == 4
    assert [one.name for one in workspace.root.glob("*store*")] == ["store"]


@pytest.mark.parametrize("place", ["gone", "empty", "another"])
def test_what_is_not_this_projects_store_is_not_looked_over(workspace, capsys, tmp_path, place):
    lead(workspace, log_seq=3)
    store = workspace.root / "store"
    store.rename(tmp_path / "aside")
    if place == "empty":
        store.mkdir()
    if place == "another":
        (prepare(tmp_path / "other", plan(1, 1, free_base_port(3))).root / "store").rename(store)
    for words in ((), ("--repair", "--accept-loss")):
        status, answer = run(capsys, fsck_cli.main, "-w", workspace.root, *words)
        assert (status, answer["error"]["code"]) == (1, "WRONG_STORE")
        assert str(store) in answer["error"]["message"]


def test_what_ends_the_last_slot_is_told_with_it(workspace, capsys, tmp_path):
    run(capsys, backup_cli.main_backup, tmp_path / "copy", "-w", workspace.root)
    kit = workspace.kit("server1")
    log = open_store(kit.store, kit.cluster).log
    log.read_new()
    log.append(Draft("fence", 4, By("server1", f"{4:016x}"), {"cause": "test", "time": "-"}))
    spoil(workspace.root, 4)
    _, answer = run(capsys, fsck_cli.main, "-w", workspace.root, "--repair", "--from", tmp_path / "copy")
    assert "the backup has no slot 4" in answer["data"]["done"][0]
    assert "--accept-loss" in answer["data"]["findings"][0]["advice"]


@pytest.mark.parametrize(
    "words", [(), ("--kit", "nowhere"), ("--accept-loss", "-w", "x"), ("-w", "nowhere"), ("--from", "x", "-w", "y")]
)
def test_bad_words_change_nothing_and_are_told(words, capsys):
    status, answer = run(capsys, fsck_cli.main, *words)
    assert status != 0
    assert answer["error"]["message"]


def test_a_damaged_backup_is_refused_by_the_name_of_its_file(workspace, capsys, tmp_path):
    copy = tmp_path / "copy"
    status, answer = run(capsys, backup_cli.main_backup, copy, "-w", workspace.root)
    assert (status, copy.stat().st_mode & 0o077) == (0, 0)
    key = copy / "state" / "rootCA.key"
    key.write_bytes(b"x")
    status, answer = run(capsys, backup_cli.main_restore, copy, "-w", workspace.root, "--replace")
    assert (status, answer["error"]["code"]) == (1, "CORRUPT")
    assert str(key) in answer["error"]["message"]
    assert (workspace.root / "store" / "log").is_dir()


def test_a_damaged_slot_of_a_backup_is_named_and_leaves_no_workspace_half_made(workspace, capsys, tmp_path):
    run(capsys, backup_cli.main_backup, tmp_path / "copy", "-w", workspace.root)
    spoil(tmp_path / "copy", 2)
    for root, words in ((workspace.root, ("--replace",)), (tmp_path / "new", ())):
        status, answer = run(capsys, backup_cli.main_restore, tmp_path / "copy", "-w", root, *words)
        assert (status, answer["error"]["code"]) == (1, "CORRUPT")
        assert str(tmp_path / "copy") in answer["error"]["message"]
        assert "slot 2" in answer["error"]["message"]
    assert not (tmp_path / "new").exists()
    assert len(list((workspace.root / "store" / "log").iterdir())) == 4


@pytest.mark.parametrize("kept", ["lease", "store", "both"])
def test_a_backup_that_is_restored_once_more_brings_an_epoch_that_no_site_has_seen(workspace, capsys, tmp_path, kept):
    run(capsys, backup_cli.main_backup, tmp_path / "copy", "-w", workspace.root)
    again = ("-w", workspace.root, "--replace")
    _, answer = run(capsys, backup_cli.main_restore, tmp_path / "copy", *again)
    first = answer["data"]["epoch"]
    if kept == "lease":
        (workspace.root / "store").rename(tmp_path / "lost")
    if kept == "store":
        (workspace.kit("overseer").run / "overseer.db").unlink()
    status, answer = run(capsys, backup_cli.main_restore, tmp_path / "copy", *again)
    assert status == 0
    assert answer["data"]["epoch"] >= first + 2**20


def test_another_projects_backup_is_refused(workspace, capsys, tmp_path):
    other = prepare(tmp_path / "other", plan(1, 1, free_base_port(3)))
    run(capsys, backup_cli.main_backup, tmp_path / "copy", "-w", other.root)
    status, answer = run(capsys, backup_cli.main_restore, tmp_path / "copy", "-w", workspace.root, "--replace")
    assert (status, answer["error"]["code"]) == (2, "BAD_INPUT")


def test_a_restored_workspace_is_whole(workspace, capsys, tmp_path):
    run(capsys, backup_cli.main_backup, tmp_path / "copy", "-w", workspace.root)
    status, answer = run(capsys, backup_cli.main_restore, tmp_path / "copy", "-w", tmp_path / "new")
    assert status == 0, answer
    made = Workspace.open(tmp_path / "new")
    assert {kit.name for kit in made.kits} == {kit.name for kit in workspace.kits}
    kit = made.kit("server1")
    records = open_store(kit.store, kit.cluster).log.read_new().records
    assert [one.kind for one in records] == ["genesis", "fence", "fence", "fence", "epoch_repair"]
    assert records[-1].epoch == answer["data"]["epoch"]
    status, answer = run(capsys, fsck_cli.main, "-w", tmp_path / "new")
    assert (status, answer["data"]["sound"]) == (0, True)
