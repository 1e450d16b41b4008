"""Event files made from lines of the log: what TensorBoard reads, and the same bytes wherever they are made."""

from __future__ import annotations

import base64
import io
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fedhelm.persist.record import By, Record
from fedhelm_server.projection import EventFile, LiveProjection
from fedhelm_server.segments import line_items
from tests.fakes.server_log import JOB, OTHER, line

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def png(width=3, height=2):
    out = io.BytesIO()
    Image.fromarray(np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def record(*lines, source="site-1", job=JOB, seq=5):
    body = {"items": [{"job": job, "source": source, "first": 1, "lines": list(lines)}]}
    return Record(seq, 1, By("server1", "i1"), "n", "", "metrics", body, "")


def project(root, *records):
    projection = LiveProjection(root)
    for one in records:
        for item in line_items(one, JOB):
            projection.add(item)
    projection.close()
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def test_tensorboard_reads_scalars_text_and_images(tmp_path):
    project(
        tmp_path,
        record(
            line(0.5, tag="loss", step=1),
            line(0.25, tag="loss", step=2),
            line("nan", tag="odd", step=1),
            line("hello *world*", "text", tag="note", step=3),
            line(png(), "image", tag="picture", step=4),
            line("not for TensorBoard", "log"),
        ),
        record(line(1.5, tag="loss", step=1), source="site-2"),
    )
    one = events(tmp_path / "site-1")
    assert [(event.step, event.value) for event in one.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert math.isnan(one.Scalars("odd")[0].value)
    assert one.Scalars("loss")[0].wall_time == pytest.approx(1795359845.123)
    (image,) = one.Images("picture")
    assert (image.step, image.width, image.height) == (4, 3, 2)
    decoded = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert np.array_equal(decoded.reshape(-1), np.arange(18))
    (text,) = one.Tensors("note/text_summary")
    assert (text.step, text.tensor_proto.string_val[0]) == (3, b"hello *world*")
    assert one.SummaryMetadata("note/text_summary").plugin_data.plugin_name == "text"
    assert [event.value for event in events(tmp_path / "site-2").Scalars("loss")] == [1.5]


def test_the_same_lines_give_the_same_bytes(tmp_path):
    lines = [line(n / 7, step=n) for n in range(50)] + [line("words", "text"), line(png(), "image")]
    whole = project(tmp_path / "a", record(*lines))
    in_parts = project(tmp_path / "b", record(*lines[:20]), record(*lines[20:], seq=6))
    assert whole == in_parts
    assert len(whole) == 1
    again = project(tmp_path / "a", record(*lines))  # over what is there: it is made anew, not appended to
    assert again == whole


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_the_bytes_do_not_depend_on_the_machines_zone(tmp_path, zone):
    program = (
        "import sys; from pathlib import Path; from fedhelm_server.projection import EventFile; "
        "file = EventFile(Path(sys.argv[1]), 'site-1'); "
        "file.add({'kind': 'scalar', 'tag': 'x', 'value': 1, 'step': 1, 'time': '2026-11-22T15:04:05'}); file.close()"
    )
    env = {**os.environ, "TZ": zone, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=env, check=True, timeout=60)
    (path,) = tmp_path.iterdir()
    assert path.name == "events.out.tfevents.1795359845.site-1"


def test_only_the_jobs_own_lines_of_real_sources_are_taken(tmp_path):
    found = project(
        tmp_path,
        record(line(1.0), job=OTHER),
        record(line(1.0), source="../../etc"),
        record(line(1.0), source=""),
        record(line("just logs", "log"), source="server1"),
    )
    assert found == {}


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"kind": "scalar"},
        line("many", tag="loss"),
        line(None),
        line([1]),
        line(10**400),
        line(1.0, tag=7),
        line(1.0, tag=None),
        line(1.0, step="two"),
        line(1.0, step=10**30),
        line(1.0, step=1e300),
        line(1.0, time=None),
        line("not base64!", "image"),
        line(7, "image"),
        line("", "image"),
        line(1.0, kind=["scalar"]),
        line(1.0, kind="hologram"),
    ],
)
def test_a_line_that_means_nothing_costs_that_line_only(tmp_path, bad):
    project(tmp_path, record(line(1.0, step=1), bad, line(2.0, step=2)))
    assert [event.value for event in events(tmp_path / "site-1").Scalars("loss")][-1] == 2.0


@pytest.mark.parametrize("stamp", ["", "yesterday", "0001-01-01T00:00:00", "9999-12-31T23:59:59.999+00:00"])
def test_a_stamp_that_is_no_time_is_no_error(tmp_path, stamp):
    project(tmp_path, record(line(1.0, time=stamp)))
    assert [event.value for event in events(tmp_path / "site-1").Scalars("loss")] == [1.0]


VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "kind": st.sampled_from(["scalar", "text", "image", "log"]) | VALUES,
                "tag": VALUES,
                "value": VALUES | st.lists(VALUES),
                "step": VALUES,
                "time": VALUES,
            },
        ),
        max_size=5,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_line_a_site_can_send_stops_a_projection(tmp_path, lines):
    project(tmp_path / "any", record(*lines))


def test_what_was_added_can_be_read_before_the_end(tmp_path):
    file = EventFile(tmp_path, "site-1")
    file.add(line(1.0))
    file.flush(force=True)
    assert [event.value for event in events(tmp_path).Scalars("loss")] == [1.0]
    file.close()
    file.close()


def test_torch_is_not_loaded_for_an_event_file(tmp_path):
    program = (
        "import sys; from pathlib import Path; from fedhelm_server.projection import EventFile; "
        "file = EventFile(Path(sys.argv[1]), 'x'); "
        "file.add({'kind': 'scalar', 'tag': 'x', 'value': 1, 'step': 1, 'time': ''}); "
        "file.close(); assert 'torch' not in sys.modules; import torch; assert torch.__version__"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=env, check=True, timeout=60)
