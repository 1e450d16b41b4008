import pytest

from fedhelm.errors import BadInput
from fedhelm_server.local_settings import LocalSettings, read_settings


def read(tmp_path, text):
    (tmp_path / "server.json").write_text(text)
    return read_settings(tmp_path)


def test_without_a_file_and_with_an_empty_object_the_defaults_hold(tmp_path):
    assert read_settings(tmp_path) == LocalSettings("serve", None) == read(tmp_path, "{}")
    assert not LocalSettings().stop_when_unleased


def test_what_is_said_is_read(tmp_path):
    settings = read(tmp_path, '{"unleased": "stop", "metrics_port": 9464}')
    assert (settings.stop_when_unleased, settings.metrics_port) == (True, 9464)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "not a JSON object"),
        ("{", "cannot be read"),
        ('{"unlesed": "stop"}', "unknown: unlesed"),
        ('{"unleased": true}', "unleased is True"),
        ('{"unleased": "never"}', "serve, stop"),
        ('{"metrics_port": "9464"}', "metrics_port"),
        ('{"metrics_port": true}', "metrics_port"),
        ('{"metrics_port": 0}', "metrics_port"),
        ('{"metrics_port": 65536}', "metrics_port"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_key(tmp_path, text, told):
    with pytest.raises(BadInput, match=told) as refused:
        read(tmp_path, text)
    assert "server.json" in refused.value.message
