"""A child that speaks the pipe protocol and serves nothing. A program: ``MODE RECORD --incarnation ID --control-fd N``.

It notes the frames it hears in RECORD, one JSON object a line. Modes: ``good``; ``dies`` (at once, with status 3);
``deaf`` (does not hear `stop`); ``refuses`` (every grant); ``unready``; ``wedged`` (stops beating when active).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from pathlib import Path

from fedhelm.local.frames import SyncChannel
from fedhelm.process import die_with_parent

parser = argparse.ArgumentParser()
parser.add_argument("mode")
parser.add_argument("record", type=Path)
parser.add_argument("--incarnation")
parser.add_argument("--control-fd", type=int)
args = parser.parse_args()

die_with_parent(os.getppid())
if args.mode == "dies":
    sys.exit(3)


class Stub:
    def __init__(self):
        self.link = SyncChannel(socket.socket(fileno=args.control_fd))
        self.role, self.log_epoch, self.log_seq, self.beating = "STANDBY", 0, 0, True

    def note(self, frame):
        with args.record.open("a") as file:
            file.write(json.dumps({"incarnation": args.incarnation, **frame}) + "\n")

    def beat(self):
        ready = args.mode != "unready"
        self.link.send(
            "beat", role=self.role, epoch=self.log_epoch, ready=ready, append_age=0.0, log_epoch=self.log_epoch,
            log_seq=self.log_seq, cluster="c", store_ok=True, streams=0, reason=None if ready else "unready",
        )  # fmt: skip

    def act(self, frame):
        match frame["type"]:
            case "grant" if args.mode == "refuses":
                self.link.send("refused", epoch=frame["epoch"], reason="store went backwards")
            case "grant":
                self.role, self.log_epoch, self.log_seq = "ACTIVE", frame["epoch"], self.log_seq + 1
                self.link.send("active", epoch=frame["epoch"], log_seq=self.log_seq)
                self.beating = args.mode != "wedged"
            case "drain":
                self.role = "DRAINING"
                self.link.send("drained", log_seq=self.log_seq)
            case "resume":
                self.role = "ACTIVE"
            case "unleased" if self.role == "ACTIVE":
                self.role = "UNLEASED"
            case "lease" if self.role == "UNLEASED":
                self.role = "ACTIVE"
            case "stop" if args.mode != "deaf":
                sys.exit(0)

    def run(self):
        self.note({"type": "started", "pid": os.getpid(), "mark": os.environ.get("FEDHELM_PROCESS")})
        due = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= due:
                due = now + 0.05
                if self.beating:
                    self.beat()
            try:
                frame = self.link.receive(timeout=max(0.001, due - now))
            except TimeoutError:
                continue
            if frame is None:
                sys.exit(0)
            self.note(frame)
            self.act(frame)


Stub().run()
