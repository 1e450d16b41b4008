"""``fedhelm examples``: an administrator gets jobs to submit."""

from __future__ import annotations

import json

from fedhelm import cli
from fedhelm.job import load_job
from fedhelm_lab.example_jobs import example_folders, main

NAMES = ["hello-numpy", "hello-pt-tb"]


def run(capsys, *argv, status=0):
    assert main([*map(str, argv), "-o", "json"]) == status
    return json.loads(capsys.readouterr().out)["data" if status == 0 else "error"]


def test_all_examples_are_copied_and_each_is_a_job(tmp_path, capsys):
    transfer = tmp_path / "admin@nvidia.com" / "transfer"
    transfer.mkdir(parents=True)
    data = run(capsys, "-d", transfer)
    assert data["examples"] == [str(transfer / name) for name in NAMES]
    assert sorted(path.name for path in transfer.iterdir()) == NAMES == [one.name for one in example_folders()]
    for name in NAMES:
        assert load_job(transfer / name).config.name == name
    assert not [path for path in transfer.rglob("*") if path.name.startswith((".", "__pycache__"))]


def test_one_is_copied_into_the_current_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["hello-numpy"]) == 0
    assert capsys.readouterr().out == "hello-numpy\n"
    assert [path.name for path in tmp_path.iterdir()] == ["hello-numpy"]


def test_nothing_is_overwritten_and_nothing_copied_when_one_is_there(tmp_path, capsys):
    (tmp_path / "hello-pt-tb").mkdir()
    error = run(capsys, "-d", tmp_path, status=1)
    assert (error["code"], str(tmp_path / "hello-pt-tb") in error["message"]) == ("WORKSPACE_EXISTS", True)
    assert [path.name for path in tmp_path.iterdir()] == ["hello-pt-tb"]


def test_what_is_no_example_is_named_with_those_that_are(tmp_path, capsys):
    error = run(capsys, "hello-pt", "-d", tmp_path / "new", status=1)
    assert (error["message"], error["hint"]) == (
        "no example is called 'hello-pt'",
        "there are hello-numpy, hello-pt-tb",
    )
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in run(capsys, "-d", tmp_path / "file" / "x", status=1)["message"]


def test_the_command_is_known(tmp_path, capsys):
    assert cli.main(["examples", "hello-numpy", "-d", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'hello-numpy'}\n"
    assert cli.main([]) == 2
    assert "copy example jobs into a folder" in capsys.readouterr().out
