"""How long `fedhelm provision` takes for many sites: a line on standard output, nothing kept.

python -m bench.provisioning [--sites N]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from fedhelm.provision.project_file import read_project_file
from fedhelm.provision.provisioning import Secrets, provision

_HEAD = """\
api_version: 3
name: many
snapshot_persistor: /shared/many
docker_image: fedhelm:0.1
participants:
- {name: overseer, type: overseer, org: nvidia}
- {name: server1, type: server, org: nvidia}
- {name: server2, type: server, org: nvidia, fed_learn_port: 9002, admin_port: 9003}
- {name: admin@nvidia.com, type: admin, org: nvidia, role: project_admin}
"""


def _run(folder: Path, sites: int, given: Secrets) -> float:
    entries = "".join(f"- {{name: site-{n}, type: client, org: org-{n}}}\n" for n in range(1, sites + 1))
    path = folder / "project.yml"
    path.write_text(_HEAD + entries)
    start = time.monotonic()
    file = read_project_file(path)
    provision(file.project, file.source, folder / "workspace", given)
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=200)
    sites = parser.parse_args().sites
    with tempfile.TemporaryDirectory() as name:
        plain, closed = Path(name, "plain"), Path(name, "closed")
        plain.mkdir()
        closed.mkdir()
        first = _run(plain, sites, Secrets())
        again = _run(plain, sites + 1, Secrets())
        secret = _run(closed, sites, Secrets(b"a passphrase", b"a password"))
    print(
        f"{sites} sites, 4 others: {first:.1f} s; one site more: {again:.1f} s; with passphrase and encrypted zips: "
        f"{secret:.1f} s (load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores)"
    )


if __name__ == "__main__":
    main()
