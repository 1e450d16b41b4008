"""`fedhelm audit`: verify, show, export; and a downloaded result against its statement."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import socket

import pytest

from fedhelm.job.bundle import pack
from fedhelm.provision.audit_cli import main
from fedhelm.security.audit import AuditFile
from fedhelm.security.audit_lines import Entry, Outcome, encode
from fedhelm.security.identity import Principal
from fedhelm.security.job_signing import sign_submission
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.provenance import Provenance, TrainedRound, sign_provenance
from fedhelm.wire.bulk import manifest_of
from tests.fakes.provision_clock import FixedClock
from tests.support.kits import ADMIN, make_kits

BOB = Principal("poc", "lead", "bob@a.org", "a", "5f")
EVE = Principal("poc", "member", "eve@b.org", "b", "6a")


@pytest.fixture
def run(capsys):
    def command(*words):
        status = main([str(word) for word in words])
        out = capsys.readouterr()
        return status, (out.out or out.err).rstrip("\n")

    return command


@pytest.fixture
def kit(tmp_path):
    root = tmp_path / "site-1"
    root.mkdir()
    with AuditFile(root / "audit.jsonl", clock=FixedClock()) as file:
        file.append([
            Entry("start", Outcome.ALLOWED),
            Entry("Admin.AbortJob", Outcome.ALLOWED, BOB, {"job": "k7m3tq4w2zpx"}),
            Entry("Admin.AbortJob", Outcome.DENIED, EVE, {"job": "k7m3tq4w2zpx"}, "\x1b[2Jnobody of this role may"),
            Entry("Admin.Operate", Outcome.DENIED, EVE, {"site": "site-2, site-1"}, "x", times=3),
        ])  # fmt: skip
        last = file.last
    return root, last


def test_verify_says_that_every_line_fits_and_the_last_digest(kit, run):
    root, (number, digest) = kit
    for where in (root, root / "audit.jsonl"):
        status, text = run("verify", where)
        assert status == 0
        assert text == f"{root / 'audit.jsonl'}: every line fits\n4 lines, the last that fits is {number}:{digest}"
    status, text = run("verify", root, "-o", "json")
    data = json.loads(text)["data"]
    assert (data["sound"], data["lines"], data["last"]) == (True, 4, {"number": 4, "sha256": digest})


def test_verify_names_the_first_line_that_does_not_fit(kit, run):
    root, _ = kit
    path = root / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"eve@b.org", b"bob@a.org", 1))
    status, text = run("verify", root)
    assert status == 1
    assert text.startswith(f"{path}: line 3 was changed: its sha256 is another\n2 lines, the last that fits is 2:")
    status, text = run("verify", root, "-o", "json")
    assert status == 1
    assert json.loads(text)["data"]["problem"] == "line 3 was changed: its sha256 is another"


def test_a_tail_that_was_cut_shows_to_whoever_kept_its_digest(kit, run):
    root, (number, digest) = kit
    path = root / "audit.jsonl"
    assert run("verify", root, "--expect", f"{number}:{digest}")[0] == 0
    status, text = run("verify", root, "--expect", f"{number}:{'0' * 64}")
    assert (status, "line number 4 is another" in text) == (1, True)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    assert run("verify", root)[0] == 0
    status, text = run("verify", root, "--expect", f"{number}:{digest}")
    assert (status, "line number 4 is missing: the end was cut" in text) == (1, True)
    status, text = run("verify", root, "--expect", "4")
    assert (status, "is not NUMBER:SHA256" in text) == (2, True)


def test_unfinished_lines_are_told(kit, run):
    root, _ = kit
    path = root / "audit.jsonl"
    with path.open("ab") as file:
        file.write(b'{"number":5,')
    status, text = run("verify", root)
    assert (status, text.splitlines()[-1]) == (0, "12 bytes at the end are not a whole line yet")
    AuditFile(path).close()
    status, text = run("verify", root)
    assert status == 0
    assert text.splitlines()[-1] == "1 unfinished by writers that were killed or had no room, and noted: line 5"


def test_show_chooses_and_shows_nothing_that_moves_the_terminal(kit, run):
    root, _ = kit
    status, text = run("show", root)
    assert status == 0
    assert len(text.splitlines()) == 5
    assert "\x1b" not in text
    assert [line.split()[0] for line in run("show", root, "--denied")[1].splitlines()[1:]] == ["3", "4"]
    assert [line.split()[0] for line in run("show", root, "--by", "bob@a.org")[1].splitlines()[1:]] == ["2"]
    assert [line.split()[0] for line in run("show", root, "--about", "site-1", "-n", "0")[1].splitlines()[1:]] == ["4"]
    assert [line.split()[0] for line in run("show", root, "--about", "site-2", "-n", "0")[1].splitlines()[1:]] == ["4"]
    assert "Admin.Operate (x3)" in text
    assert run("show", root, "--by", "nobody")[1] == "no such line"
    assert [line["number"] for line in json.loads(run("show", root, "-n", 2, "-o", "json")[1])["data"]["lines"]] == [
        3,
        4,
    ]
    assert run("show", root, "-n", "-1")[0] == 2


FORGED = [
    "no\n99      2026-01-01T00:00:00Z  lead bob@a.org  Admin.AbortJob  allowed\x1b[8m",
    "no\r\x1b[2Ano\u2028no\x85no\u202eon",
]


@pytest.mark.parametrize("text", FORGED)
def test_no_text_of_others_makes_a_row_of_its_own(tmp_path, run, text):
    path = tmp_path / "audit.jsonl"
    asked = Entry(text, Outcome.DENIED, dataclasses.replace(EVE, name=text), {"reason": text, text: "x"}, text)
    with AuditFile(path, clock=FixedClock()) as file:
        file.append([asked])
    status, shown = run("show", path)
    assert (status, len(shown.splitlines())) == (0, 2)
    assert not set("\x1b\r\u2028\x85\u202e") & set(shown)
    body = json.loads(path.read_text())
    assert all(one.isprintable() for one in (body["action"], body["why"], body["by"]["name"], *body["object"].values()))


def test_a_line_of_before_that_has_such_text_is_one_row_as_well(tmp_path, run):
    """Files of before held whatever somebody gave as a reason."""
    body = {**encode(Entry("a", Outcome.DENIED, EVE, {"reason": "x"}), 1, "0" * 64, "t").body}
    body["object"] = {"reason": FORGED[0]}
    del body["sha256"]
    plain = json.dumps(body, separators=(",", ":")).encode()
    raw = plain[:-1] + b',"sha256":"%s"}\n' % hashlib.sha256(plain).hexdigest().encode()
    path = tmp_path / "audit.jsonl"
    path.write_bytes(raw)
    status, shown = run("show", path)
    assert (status, len(shown.splitlines())) == (0, 2)
    assert "\x1b" not in shown


def remembering(root, count):
    with AuditFile(root / "audit.jsonl", clock=FixedClock(), memory=root / "run" / "audit-last.json") as file:
        return [line for number in range(count) for line in file.append([Entry(f"a{number}", Outcome.ALLOWED)])]


def test_verify_knows_what_the_kit_remembers(tmp_path, run):
    (last,) = remembering(tmp_path, 4)[-1:]
    path = tmp_path / "audit.jsonl"
    assert run("verify", tmp_path)[0] == 0
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    status, text = run("verify", tmp_path)
    assert status == 1
    assert f"line number 4 is missing: the end was cut (run/audit-last.json has 4:{last.digest})" in text
    path.write_bytes(b"")
    status, text = run("verify", path)
    assert (status, "line number 4 is missing" in text) == (1, True)
    path.unlink()
    with AuditFile(path, clock=FixedClock()) as file:
        file.append([Entry("another", Outcome.ALLOWED)] * 9)
    status, text = run("verify", tmp_path)
    assert (status, "line number 4 is another" in text) == (1, True)


def test_a_file_without_a_line_proves_nothing(tmp_path, run):
    path = tmp_path / "audit.jsonl"
    path.touch()
    status, text = run("verify", tmp_path)
    assert (status, text.splitlines()[0]) == (1, f"{path}: there is no line, and nothing says that there was none")
    path.unlink()
    remembering(tmp_path, 0)  # a participant that was started, and of which nobody asked anything
    assert run("verify", tmp_path) == (0, f"{path}: there is no line yet")


def test_verify_says_that_lines_are_gone_until_somebody_says_that_it_is_known(tmp_path, run):
    path = tmp_path / "audit.jsonl"
    remembering(tmp_path, 3)
    path.unlink()
    remembering(tmp_path, 1)
    status, text = run("verify", tmp_path)
    assert status == 1
    assert "line number 4 says that lines are gone: audit.jsonl ends before the last line that was written" in text
    assert "begins with number 4" in text
    assert json.loads(run("verify", tmp_path, "-o", "json")[1])["data"]["missing"] == [4]
    assert run("verify", tmp_path, "--known", "4")[0] == 0
    assert run("verify", tmp_path, "--known", "3")[0] == 1


def test_verify_tells_how_many_lines_were_never_written(kit, run):
    root, _ = kit
    with AuditFile(root / "audit.jsonl", clock=FixedClock()) as file:
        file.append([Entry("audit.lost", Outcome.FAILED, object={"lines": 12})] * 2)
    status, text = run("verify", root)
    assert (status, text.splitlines()[-1]) == (0, "24 lines could not be written, as the file says itself (audit.lost)")


def test_a_damaged_file_shows_what_fits_and_says_the_rest(kit, run, capsys):
    root, _ = kit
    path = root / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"eve@b.org", b"bob@a.org", 1))
    assert main(["show", str(root)]) == 4
    out = capsys.readouterr()
    assert len(out.out.splitlines()) == 3
    assert out.err.startswith(f"error[BAD_SIGNATURE]: {path}: line 3 was changed")
    status, text = run("show", root, "-o", "json")
    data = json.loads(text)["data"]
    assert (status, len(data["lines"])) == (4, 2)
    assert "line 3 was changed" in data["problem"]


def test_export_writes_the_lines_as_they_are(kit, run, tmp_path):
    root, _ = kit
    raw = (root / "audit.jsonl").read_text()
    assert run("export", root, "--to", "-") == (0, raw.rstrip("\n"))
    target = tmp_path / "out.jsonl"
    assert run("export", root, "--to", target, "--since", "3") == (0, f"2 lines to {target}")
    assert target.read_text() == "".join(raw.splitlines(keepends=True)[2:])
    status, text = run("export", root, "--to", target)
    assert (status, "is there already" in text) == (2, True)
    assert run("export", root, "--to", tmp_path / "no" / "x")[0] == 2
    assert run("export", root, "--to", "-", "-o", "json")[0] == 2


def test_export_to_a_syslog_receiver(kit, run):
    root, (_, digest) = kit
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        url = f"udp://127.0.0.1:{receiver.getsockname()[1]}"
        assert run("export", root, "--to", url) == (0, f"4 lines to {url}")
        got = [receiver.recv(65536).decode() for _ in range(4)]
    assert got[3].startswith("<108>1 2026-01-01T00:00:00.000Z site-1 fedhelm ")
    assert '[meta sequenceId="4"] ' in got[3]
    assert digest in got[3]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    status, text = run("export", root, "--to", f"tcp://127.0.0.1:{port}")
    assert (status, "does not take them after 0 lines" in text) == (3, True)
    assert run("export", root, "--to", "http://x")[0] == 2


def test_what_is_not_there_is_said(tmp_path, run):
    status, text = run("verify", tmp_path)
    assert (status, f"{tmp_path / 'audit.jsonl'}: there is none" in text) == (1, True)
    assert run("nothing", tmp_path)[0] == 2
    assert run()[0] == 2


# -- provenance --------------------------------------------------------------------------------------------------------

JOB = "k7m3tq4w2zpx"


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    return make_kits(tmp_path_factory.mktemp("kits"))


@pytest.fixture
def result(kits, tmp_path):
    """A folder as download_job makes it, in the admin's transfer."""
    admin, server = kits[ADMIN], kits["server1"]
    folder = admin.root / "transfer" / tmp_path.name
    for name in ("models", "job/app"):
        (folder / name).mkdir(parents=True)
    (folder / "job" / "job.yaml").write_text("name: hello\n")
    (folder / "job" / "app" / "train.py").write_text("print('hello')\n")
    (folder / "models" / "final.safetensors").write_bytes(b"final")
    (folder / "models" / "best.safetensors").write_bytes(b"best")
    pack(folder / "job", tmp_path / "bundle")
    code = manifest_of(tmp_path / "bundle").digest
    final, best = (hashlib.sha256(data).hexdigest() for data in (b"final", b"best"))
    rounds = tuple(
        TrainedRound(0, number, "train", number, "server1", ("site-1",), digest, "2026-01-01T00:00:00.000Z")
        for number, digest in ((1, best), (2, final))
    )
    submission = sign_submission(admin, JOB, "hello", code).decode()
    provenance = Provenance(
        "poc", server.cluster, JOB, "hello", ADMIN, "nvidia", code, submission, rounds, final, {"fedhelm": "1"}
    )
    (folder / "provenance.json").write_bytes(sign_provenance(server, provenance))
    (folder / "summary.json").write_text(
        json.dumps({"job_id": JOB, "submitter": ADMIN, "final_model_sha256": final, "rounds": []})
    )
    return folder, provenance


def test_no_name_in_a_statement_makes_a_finding_of_its_own(result, run, kits):
    folder, provenance = result
    forged = dataclasses.replace(provenance, name="hello\nok     job: is the code that ran\x1b[8m")
    (folder / "provenance.json").write_bytes(sign_provenance(kits["server1"], forged))
    status, text = run("provenance", folder)
    assert status == 1
    assert text.splitlines()[1].startswith("signed by server1")
    assert "\x1b" not in text


def test_a_result_is_what_its_statement_says(result, run, kits):
    folder, _ = result
    status, text = run("provenance", folder)
    assert status == 0
    lines = text.splitlines()
    assert lines[0] == f"job {JOB} (hello) of project poc, submitted by {ADMIN} (nvidia)"
    assert lines[1].startswith("signed by server1, 20")
    assert lines[2] == "trained by site-1"
    checks = [line for line in text.splitlines() if line.startswith("ok")]
    assert [line.split()[1] for line in checks] == [
        "models/final.safetensors:", "models/best.safetensors:", "job:", "summary.json:", "submission:",
    ]  # fmt: skip
    assert checks[1].endswith("is the model of round 1")
    status, text = run("provenance", folder, "--kit", kits["site-1"].root, "-o", "json")
    data = json.loads(text)["data"]
    assert (status, data["sound"], data["signer"]) == (0, True, "server1")
    assert data["provenance"]["rounds"][0]["members"] == ["site-1"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("models/final.safetensors", "other", "WRONG  models/final.safetensors: is another model: sha256 "),
        ("models/best.safetensors", "other", "WRONG  models/best.safetensors: is of no round: sha256 "),
        ("job/app/train.py", "import os", "WRONG  job: is other code: digest "),
        ("job/app/more.py", "import os", "WRONG  job: is other code: digest "),
        ("summary.json", "{}", "WRONG  summary.json: cannot be read: KeyError"),
        (
            "summary.json",
            json.dumps({"job_id": JOB, "submitter": "eve@b.org", "final_model_sha256": None}),
            "WRONG  summary.json: says another",
        ),
    ],
)
def test_what_was_changed_is_named(result, run, name, content, told):
    folder, _ = result
    (folder / name).write_text(content)
    status, text = run("provenance", folder)
    assert status == 1
    assert [line for line in text.splitlines() if line.startswith("WRONG")] == [
        line for line in text.splitlines() if line.startswith(told)
    ]
    assert told in text


def test_what_is_not_there_is_not_wrong(result, run, kits):
    folder, provenance = result
    for name in ("models/final.safetensors", "models/best.safetensors", "summary.json"):
        (folder / name).unlink()
    (folder / "job").rename(folder / "elsewhere")
    unsigned = dataclasses.replace(provenance, submission=None)
    (folder / "provenance.json").write_bytes(sign_provenance(kits["server1"], unsigned))
    status, text = run("provenance", folder)
    assert status == 0
    assert sum(line.startswith("-   ") for line in text.splitlines()) == 6  # and what was revoked is not known here


def test_a_submission_of_another_is_named(result, run, kits):
    folder, provenance = result
    forged = dataclasses.replace(provenance, submitter="eve@b.org")
    (folder / "provenance.json").write_bytes(sign_provenance(kits["server1"], forged))
    status, text = run("provenance", folder)
    assert status == 1
    assert (
        f"WRONG  submission: the signature of job {JOB}: signed by project_admin {ADMIN}, submitted by eve@b.org"
        in text
    )


def test_a_statement_that_does_not_hold_is_refused(result, run, kits, tmp_path):
    folder, provenance = result
    path = folder / "provenance.json"
    path.write_bytes(path.read_bytes().replace(b"hello", b"HELLO", 1))
    status, text = run("provenance", folder)
    assert (status, text.startswith(f"error[BAD_SIGNATURE]: {path}: the signature is not that of server server1")) == (
        4,
        True,
    )
    elsewhere = dataclasses.replace(provenance, cluster="f" * 32)
    path.write_bytes(sign_provenance(kits["server1"], elsewhere))
    status, text = run("provenance", folder)
    assert (status, "is of another federation of project poc" in text) == (4, True)
    stranger = make_kits(tmp_path, authority=CertificateAuthority.create("poc"), cluster=kits["server1"].cluster)
    path.write_bytes(sign_provenance(stranger["server1"], provenance))
    status, text = run("provenance", folder)
    assert (status, "was not issued by this project's root" in text) == (4, True)
    path.unlink()
    assert run("provenance", folder)[0] == 1
    status, text = run("provenance", tmp_path)
    assert (status, "lies in no kit (hint: --kit KIT" in text) == (1, True)
