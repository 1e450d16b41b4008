"""What a user's training script talks to.

::

    import fedhelm.script as fl

    with fl.connect() as site:
        for task in site.tasks():
            if task.model is not None:
                model.load_state_dict(task.model.torch())
            ...
            site.log("loss", loss, step)
            task.submit(model.state_dict(), weight=n, metrics={"accuracy": accuracy})

The same script runs at a site, in the simulator and under ``torchrun`` (where rank 0 talks).
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import math
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, SupportsFloat

from fedhelm.errors import BadInput, FedhelmError, ProtocolError, Refused, Unreachable
from fedhelm.local import script_values
from fedhelm.local.frames import SyncChannel
from fedhelm.local.script_protocol import MAX_LINE, SOCKET_ENV, TOKEN_ENV, TaskOrder, Welcome, json_length

if TYPE_CHECKING:
    from fedhelm.tensors import Arrays

__all__ = ["Site", "SummaryWriter", "Task", "connect"]

_FLUSH_SECONDS = 0.2
_FLUSH_LINES = 200
_FLUSH_CHARACTERS = 1024 * 1024


def connect() -> Site:
    """Connect this script to the agent of its site, for a ``with`` block.

    Raises:
        Refused: the script does not run inside a job, or is not the process that talks (``torchrun``: rank 0).
        Unreachable: the agent is gone.
    """
    path, token = os.environ.get(SOCKET_ENV), os.environ.get(TOKEN_ENV)
    if not path or not token:
        raise Refused(
            "this script runs outside a Fedhelm job: nobody hands it tasks",
            hint="put it into a job's app folder and submit the job: submit_job JOB in `fedhelm console KIT`",
        )
    if os.environ.get("RANK", "0") != "0":
        raise Refused("only rank 0 talks to the site", hint='call connect() where os.environ["RANK"] is "0"')
    return Site(_Line(path, token))


class _Line:
    """The connection to the agent; lines are buffered for a moment, everything else is not."""

    def __init__(self, path: str, token: str) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            raise Unreachable(f"the site's agent does not answer: {error.strerror}") from error
        self._channel = SyncChannel(sock)
        self._pid = os.getpid()
        self._sending = threading.Lock()
        self._buffered = threading.Lock()
        self._lines: list[dict[str, Any]] = []
        self._characters = 0
        self._flusher: threading.Thread | None = None
        self._closed = threading.Event()
        try:
            self.welcome = Welcome.from_frame(self.ask("welcome", "hello", token=token, pid=os.getpid()))
        except FedhelmError:
            self._channel.close()
            raise

    def ask(self, want: str, type: str, **fields: Any) -> dict[str, Any]:  # noqa: A002 - the wire's own word
        """Send a frame and return the answer, which is of type ``want`` or ends the script with an error."""
        self._send(type, **fields)
        answer = self._channel.receive()
        if answer is None:
            raise Unreachable("the site's agent has closed the connection")
        if answer["type"] in ("rejected", "refused"):
            raise Refused(f"the site refused: {answer.get('reason')}")
        if answer["type"] not in want.split("|"):
            raise ProtocolError(f"the site answered {answer['type']!r}, not {want!r}")
        return answer

    def _send(self, type: str, **fields: Any) -> None:  # noqa: A002 - the wire's own word
        self._check_process()
        try:
            with self._sending:
                self._channel.send(type, **fields)
        except OSError as error:
            raise Unreachable("the site's agent has closed the connection") from error

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise Refused("a forked process cannot talk to the site: only the one that called connect() can")

    def put(self, line: dict[str, Any]) -> None:
        """Buffer a line; it leaves within a fifth of a second."""
        self._check_process()
        with self._buffered:
            self._lines.append(line)
            self._characters += len(line["value"]) if isinstance(line["value"], str) else 32
            full = len(self._lines) >= _FLUSH_LINES or self._characters >= _FLUSH_CHARACTERS
            if self._flusher is None:
                self._flusher = threading.Thread(target=self._flush_often, name="fedhelm-lines", daemon=True)
                self._flusher.start()
        if full:
            self.flush()

    def flush(self) -> None:
        """Send what is buffered."""
        with self._buffered:
            # Sent under the lock: lines of two threads keep their order.
            while self._lines:
                count, characters = 0, 0
                while count < len(self._lines) and characters < 4 * _FLUSH_CHARACTERS:
                    value = self._lines[count]["value"]
                    characters += len(value) if isinstance(value, str) else 32
                    count += 1
                self._send("lines", lines=self._lines[:count])
                del self._lines[:count]
            self._characters = 0

    def _flush_often(self) -> None:
        while not self._closed.wait(_FLUSH_SECONDS):
            try:
                self.flush()
            except FedhelmError:
                return  # the main thread meets the same error at its next call

    def close(self) -> None:
        """Send what is buffered, close the connection."""
        if self._closed.is_set() or os.getpid() != self._pid:
            return
        with contextlib.suppress(Unreachable):
            self.flush()
        self._closed.set()
        self._channel.close()


class Site:
    """This site, inside one job.

    Attributes:
        name: the site's name.
        job: the job's id.
        job_name: the job's name.
        members: names of the job's sites, sorted; the same at every site.
        options: the job's ``options``, as in ``job.yaml``.
        workdir: a folder of this job that the script may write to; also its current folder.
    """

    def __init__(self, line: _Line) -> None:
        self._line = line
        self._task: Task | None = None
        welcome = line.welcome
        self.name = welcome.site
        self.job = welcome.job
        self.job_name = welcome.name
        self.members = welcome.members
        self.options = welcome.options
        self.workdir = welcome.workdir
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None:
            self._check_answered()

    def __repr__(self) -> str:
        return f"<Site {self.name} in job {self.job}>"

    def close(self) -> None:
        """Send what is buffered and leave; a ``with`` block does it."""
        atexit.unregister(self.close)
        self._line.close()

    def _check_answered(self) -> None:
        if self._task is not None and not self._task.submitted:
            raise Refused(
                f"the script left the {self._task.kind} task of round {self._task.round} without an answer",
                hint="call task.submit(...) once for each task",
            )

    def tasks(self) -> Iterator[Task]:
        """Yield one task after the other until the job ends; waits between them for as long as it takes.

        Raises:
            Refused: the script asks for the next task before it submitted an answer to this one.
            Unreachable: the agent is gone.
        """
        while True:
            self._check_answered()
            self._line.flush()
            answer = self._line.ask("task|end", "next")
            if answer["type"] == "end":
                return
            self._task = Task(self._line, TaskOrder.from_frame(answer))
            yield self._task

    def log(self, tag: str, value: SupportsFloat, step: int | None = None) -> None:
        """Stream one number, such as a loss, to the server; it stands in the job's TensorBoard files.

        Args:
            tag: name of the curve.
            value: anything ``float()`` takes, NaN and infinity too.
            step: place on the x axis.

        Raises:
            BadInput: wrong types.
        """
        number = script_values.number(value, f"the value of {tag!r}")
        self._put("scalar", tag, number if math.isfinite(number) else str(number), step)

    def summary_writer(self) -> SummaryWriter:
        """Return an object with the usual methods of TensorBoard's ``SummaryWriter`` that streams to the server."""
        return SummaryWriter(self)

    def _put(self, kind: str, tag: str, value: float | str, step: int | None) -> None:
        if not isinstance(tag, str) or not 0 < len(tag) <= 256:
            raise BadInput(f"a tag is a text of at most 256 characters, not {tag!r}")
        if isinstance(value, str) and (length := json_length(value)) > MAX_LINE:
            raise BadInput(f"{tag!r}: {kind} of {length} characters, at most {MAX_LINE} can be streamed")
        self._line.put({"kind": kind, "tag": tag, "value": value, "step": script_values.step(step), "time": _now()})


class Task:
    """One task of one round.

    Attributes:
        kind: ``train`` or ``evaluate``.
        round: from 1.
        rounds: how many there will be.
        step: index in the job's workflow.
        submitted: whether it was answered.
    """

    def __init__(self, line: _Line, order: TaskOrder) -> None:
        self._line = line
        self._order = order
        self._model: Arrays | None = None
        self.kind = order.kind
        self.round = order.round
        self.rounds = order.rounds
        self.step = order.step
        self.submitted = False

    def __repr__(self) -> str:
        return f"<Task {self.kind}, round {self.round} of {self.rounds}>"

    @property
    def model(self) -> Arrays | None:
        """The global model: ``.numpy()`` and ``.torch()`` give dictionaries of arrays. None while there is none yet."""
        if self._model is None and self._order.model is not None:
            from fedhelm.tensors import Arrays

            self._model = Arrays(self._order.model)
        return self._model

    def submit(
        self,
        arrays: Mapping[str, Any] | None = None,
        *,
        weight: SupportsFloat = 1.0,
        metrics: Mapping[str, SupportsFloat] | None = None,
    ) -> None:
        """Answer the task; returns once the site has the answer on its disk.

        Args:
            arrays: a dictionary of numpy arrays or torch tensors, such as a ``state_dict``. A train task needs one,
                an evaluate task takes none.
            weight: of this site in the average, such as its number of samples; positive.
            metrics: names and numbers, such as an accuracy.

        Raises:
            BadInput: a value is wrong; the task is still open.
            Refused: it was answered already, or the site does not take it.
        """
        what = f"the {self.kind} task of round {self.round}"
        if self.submitted:
            raise Refused(f"{what} was submitted already", hint="submit once for each task")
        if arrays is None and self.kind == "train":
            raise BadInput(f"{what} needs arrays", hint="task.submit(model.state_dict(), weight=n)")
        if arrays is not None and self.kind == "evaluate":
            raise BadInput(f"{what} takes no arrays", hint="task.submit(metrics={...}), by task.kind")
        number, numbers = script_values.weight(weight), script_values.metrics(metrics)
        file = None if arrays is None else self._write(arrays)
        self._line.flush()
        self._line.ask("accepted", "result", key=self._order.key, file=file, weight=number, metrics=numbers)
        self.submitted = True

    def _write(self, arrays: Any) -> str:
        from fedhelm.tensors import arrays_from, write_file

        path = self._order.result_dir / f"{self._order.key}.safetensors"
        write_file(path, arrays_from(arrays), sync=False)  # the agent makes it durable
        return path.name


class SummaryWriter:
    """The usual methods of TensorBoard's ``SummaryWriter``; what they get is streamed, not written here."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_scalar(
        self, tag: str, scalar_value: SupportsFloat, global_step: int | None = None, *_: Any, **__: Any
    ) -> None:
        """Stream one number."""
        self._site.log(tag, scalar_value, global_step)

    def add_scalars(
        self,
        main_tag: str,
        tag_scalar_dict: Mapping[str, SupportsFloat],
        global_step: int | None = None,
        *_: Any,
        **__: Any,
    ) -> None:
        """Stream several numbers as ``main_tag/name``."""
        for name, value in tag_scalar_dict.items():
            self._site.log(f"{main_tag}/{name}", value, global_step)

    def add_text(self, tag: str, text_string: str, global_step: int | None = None, *_: Any, **__: Any) -> None:
        """Stream a text."""
        self._site._put("text", tag, str(text_string), global_step)  # noqa: SLF001 - one module, one API

    def add_image(
        self,
        tag: str,
        img_tensor: Any,
        global_step: int | None = None,
        *_: Any,
        dataformats: str = "CHW",
        **__: Any,
    ) -> None:
        """Stream an image.

        Args:
            tag: its name.
            img_tensor: numpy array or torch tensor; floats from 0 to 1, or bytes; 1, 3 or 4 channels.
            global_step: place on the x axis.
            dataformats: order of the dimensions, ``CHW``, ``HWC`` or ``HW``.

        Raises:
            BadInput: another shape, or an image too large to stream.
        """
        encoded = base64.b64encode(script_values.png(img_tensor, dataformats)).decode()
        self._site._put("image", tag, encoded, global_step)  # noqa: SLF001 - one module, one API

    def flush(self) -> None:
        """Send what is buffered."""
        self._site._line.flush()  # noqa: SLF001 - one module, one API

    def close(self) -> None:
        """Send what is buffered; the site stays connected."""
        self.flush()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
