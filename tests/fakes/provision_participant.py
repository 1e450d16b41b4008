"""A participant's process without a federation: takes the lock, says that it is ready, has a child, ends at SIGTERM.

``local/fake.json`` of the kit changes it: {"die": line, "late": true, "deaf": true, "reason": text, "says": line}.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from fedhelm.errors import AlreadyRunning
from fedhelm.output import emit_error
from fedhelm.process import ParticipantLock, child_env, write_state


def main(role, kit):
    behaviour = kit / "local" / "fake.json"
    options = json.loads(behaviour.read_text()) if behaviour.exists() else {}
    print(f"{role} starts", flush=True)  # noqa: T201
    lock = ParticipantLock(kit / "run")
    try:
        lock.acquire()
    except AlreadyRunning as error:
        return emit_error(error)
    if "die" in options:
        sys.stderr.write(options["die"] + "\n")
        return 1
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    child = subprocess.Popen(["sleep", "600"], env=child_env(kit, "child"))
    if "says" in options:
        sys.stderr.write(options["says"] + "\n")
    write_state(kit / "run", ready=not (options.get("late") or "reason" in options), reason=options.get("reason"))
    if options.get("deaf"):
        signal.sigwait([signal.SIGUSR1])
    signal.sigwait([signal.SIGTERM])
    if not options.get("leaves_child"):
        child.kill()
        child.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[3])))
