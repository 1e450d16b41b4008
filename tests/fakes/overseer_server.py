"""An overseer of one's own making on a real socket with real TLS: HTTP/1.1, answers by script, hangs on request."""

from __future__ import annotations

import asyncio
import json
import urllib.parse

from fedhelm.security.tls import server_context
from fedhelm.wire import overseer_api as api

ROW = api.LeaseView(version=1, epoch=1, holder="server1", incarnation="aa", state="active")


def wrong(status, code, message="for a test"):
    return status, {"code": code, "message": message, "hint": None}


class ScriptedOverseer:
    """Answers every call as ``answers`` says, by the last part of its path; `calls` has what was asked."""

    def __init__(self, kit):
        self.row = ROW
        self.calls = []
        self.polls = []
        self.serials = []  # of the certificate of each connection
        self.most = {}  # path -> how many were open at a time, at most
        self.answers = {}  # last part of the path -> (status, body), or "hang"
        self.going = asyncio.Event()  # lets those that hang go on
        self._kit = kit
        self._open = {}
        self._changed = asyncio.Event()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=server_context(self._kit))
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks = set()
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def of(self, path):
        return [body for asked, body in self.calls if asked == path]

    def change(self, **fields):
        self.row = self.row.model_copy(update=fields)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        try:
            self.serials.append((writer.get_extra_info("peercert") or {}).get("serialNumber", "").lower().lstrip("0"))
            while head := await reader.readuntil(b"\r\n\r\n"):
                path, length = head.split()[1].decode(), 0
                for line in head.decode().lower().split("\r\n"):
                    length = int(line.split(":")[1]) if line.startswith("content-length") else length
                body = json.loads(await reader.readexactly(length)) if length else None
                status, answer = await self._counted(urllib.parse.urlsplit(path), body)
                data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                writer.write(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n" % (status, len(data)) + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the end of the test, too
        finally:
            writer.close()

    async def _counted(self, url, body):
        kind = url.path.rpartition("/")[2]
        self.calls.append((kind, body))
        self._open[kind] = self._open.get(kind, 0) + 1
        self.most[kind] = max(self.most.get(kind, 0), self._open[kind])
        try:
            return await self._answer(kind, dict(urllib.parse.parse_qsl(url.query)))
        finally:
            self._open[kind] -= 1

    async def _answer(self, kind, query):
        answer = self.answers.get(kind)
        if answer == "hang":
            await self.going.wait()
        elif answer is not None:
            return answer
        row = self.row
        match kind:
            case "renew":
                return 200, api.RenewReply(held=True, lease=row).model_dump_json()
            case "register":
                return 200, api.RegisterReply(accepted=True, lease=row).model_dump_json()
            case "lease":
                await self._until_changed(int(query["after"]), float(query["wait"]))
                return 200, self.row.model_dump_json()
            case "servers" | "history":
                return 200, []
        return 200, row.model_dump_json()

    async def _until_changed(self, after, wait):
        self.polls.append(after)
        try:
            async with asyncio.timeout(wait):
                while self.row.version == after:
                    await self._changed.wait()
        except TimeoutError:
            pass
