"""What no decoder does, done on purpose under the watch: ``python -m tests.hostile.evil SCRATCH``.

Prints a JSON object: the name of each deed, and what the watch noticed of it.
"""

from __future__ import annotations

import ctypes
import json
import marshal  # noqa: TID251 - the watch has to notice it
import os
import pickle  # noqa: TID251 - as above
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.hostile.watch import Watch


class Evil:
    def __reduce__(self) -> tuple[object, tuple[()]]:
        return os.getpid, ()


PICKLED, MARSHALLED = pickle.dumps(Evil()), marshal.dumps(1)


def _through_a_link() -> None:
    Path("way").symlink_to("..")
    Path("way/evil").write_text("x")


def _renamed() -> None:
    Path("mine").write_text("x")
    Path("mine").rename("../evil")


def _linked() -> None:
    Path("again").write_text("x")
    os.link("again", "../evil-link")


def _fine() -> None:
    Path("good").write_text("x")
    Path("folder").mkdir()
    Path("good").rename("folder/good")
    Path("/etc/hostname").read_bytes()
    json.loads("{}")


DEEDS: dict[str, Callable[[], object]] = {
    "pickle.find_class": lambda: pickle.loads(PICKLED),
    "marshal.loads": lambda: marshal.loads(MARSHALLED),
    "exec": lambda: exec("1"),
    "compile": lambda: eval("1"),
    "os.system": lambda: os.system("true"),
    "subprocess.Popen": lambda: subprocess.run(["true"], check=True, timeout=10),
    "ctypes.dlopen": lambda: ctypes.CDLL(None),
    "import": lambda: __import__("this"),
    "outside: opened": lambda: Path("../evil-open").write_text("x"),
    "outside: opened by number": lambda: os.close(os.open("../evil-fd", os.O_WRONLY | os.O_CREAT)),
    "outside: folder": lambda: Path("../evil-folder").mkdir(),
    "outside: link": lambda: Path("../evil-symlink").symlink_to("/etc"),
    "outside: hard link": _linked,
    "outside: renamed": _renamed,
    "outside: through a link": _through_a_link,
    "fine": _fine,
}


def main(scratch: Path) -> int:
    place = scratch / "place"
    place.mkdir()
    os.chdir(place)
    told = {}
    for name, deed in DEEDS.items():
        with Watch(place) as watch:
            deed()
        told[name] = [sorted(watch.forbidden), [Path(one).name for one in watch.outside]]
    sys.stdout.write(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
