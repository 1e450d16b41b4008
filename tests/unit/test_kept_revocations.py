from __future__ import annotations

import pytest

from fedhelm.errors import BadCertificate, FedhelmError, KitError
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.revocation import RevocationList, Revoked
from tests.support.kits import make_kits

AT = "2026-11-22T15:04:05.123Z"


@pytest.fixture
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture
def kit(tmp_path, authority):
    return make_kits(tmp_path, authority=authority, cluster="c1")["server1"]


def of(version, *serials, cluster="c1"):
    entries = tuple(Revoked(serial, "site", f"site-{serial}", AT, "laptop stolen") for serial in serials)
    return RevocationList("poc", cluster, version, AT, entries)


def test_the_newest_list_is_in_force_and_survives_a_restart(kit, authority):
    kept = KeptRevocations(kit)
    kept.check("1f")
    assert (kept.current.version, kept.signed, kept.problem) == (0, b"", None)
    assert kept.offer(of(2, "1f", "2f").to_bytes(authority)) == ("1f", "2f")
    with pytest.raises(BadCertificate, match="certificate of site site-1f was revoked on 2026-11-22: laptop stolen"):
        kept.check("1f")
    kept.check("3f")
    assert kept.offer(of(3, "1f", "2f", "3f").to_bytes(authority)) == ("3f",)
    again = KeptRevocations(kit)
    assert (again.current, again.signed) == (kept.current, kept.signed)


def test_an_older_a_forged_and_anothers_list_change_nothing(kit, authority):
    kept = KeptRevocations(kit)
    newest = of(5, "1f").to_bytes(authority)
    kept.offer(newest)
    assert kept.offer(of(4).to_bytes(authority)) == ()
    assert kept.offer(of(5).to_bytes(authority)) == ()
    for data in (
        of(6).to_bytes(CertificateAuthority.create("poc")),
        of(6, cluster="c2").to_bytes(authority),
        b"",
        newest.replace(b'"1f"', b'"2f"'),
    ):
        with pytest.raises(KitError):
            kept.offer(data)
    assert KeptRevocations(kit).current == kept.current == of(5, "1f")


def test_a_damaged_file_is_a_problem_until_somebody_offers_a_list(kit, authority):
    kit.run.mkdir()
    (kit.run / "revoked.json").write_bytes(b"\xff")
    kept = KeptRevocations(kit)
    assert str(kept.problem).startswith(f"{kit.run / 'revoked.json'}: not a list")
    assert kept.current.version == 0
    kept.offer(of(1, "1f").to_bytes(authority))
    assert kept.problem is None
    assert KeptRevocations(kit).problem is None


def test_a_list_that_cannot_be_written_is_in_force_all_the_same(kit, authority):
    kit.run.write_text("no folder")
    kept = KeptRevocations(kit)
    assert "cannot be read" in str(kept.problem)
    with pytest.raises(FedhelmError, match="cannot be written"):
        kept.offer(of(1, "1f").to_bytes(authority))
    with pytest.raises(BadCertificate):
        kept.check("1f")


def test_the_list_of_the_next_root_is_good_once_the_kit_trusts_it(kit, authority):
    kept, new = KeptRevocations(kit), CertificateAuthority.create("poc")
    data = of(1, "1f").to_bytes(new)
    with pytest.raises(KitError, match="not signed"):
        kept.offer(data)
    kit.ca.write_bytes(authority.trusting(new.signing_pem).cert_pem)
    kept.trust(kit)
    assert kept.offer(data) == ("1f",)


def test_another_process_of_the_participant_reads_what_one_of_them_wrote(kit, authority):
    writer, reader = KeptRevocations(kit), KeptRevocations(kit)
    with pytest.raises(KitError, match=r"run/revoked\.json cannot be read: No such file"):
        reader.read_again()
    writer.offer(of(2, "1f").to_bytes(authority))
    assert reader.read_again() == ("1f",)
    assert reader.read_again() == ()
    assert reader.signed == writer.signed
    (kit.run / "revoked.json").write_bytes(of(9).to_bytes(CertificateAuthority.create("poc")))
    with pytest.raises(KitError, match=r"run/revoked\.json: .* was not signed by this project's root"):
        reader.read_again()
    with pytest.raises(BadCertificate):
        reader.check("1f")
