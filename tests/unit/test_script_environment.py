import pytest

from fedhelm.config.site_settings import SiteSettings, read_site_settings
from fedhelm.errors import BadInput
from fedhelm_client.script_environment import script_environment

USUAL = [
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONHASHSEED",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NCCL_DEBUG",
    "PYTORCH_CUDA_ALLOC_CONF",
]

SECRET = [
    "SITE_DB_PASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "HF_TOKEN",
    "NVIDIA_API_KEY",
    "TF_VAR_password",
    "HTTPS_PROXY",
    "https_proxy",
    "PGPASSWORD",
    "WANDB_API_KEY",
    "PYTHONANYWHERE_TOKEN",
    "SSH_AUTH_SOCK",
    "DBUS_SESSION_BUS_ADDRESS",
    "KRB5CCNAME",
    "MY_PATH",
    "path",
]


def test_a_script_gets_what_programs_need_and_no_secret_of_the_agent():
    given = script_environment({name: f"of {name}" for name in [*USUAL, *SECRET]})
    assert given == {name: f"of {name}" for name in USUAL}


def test_a_script_gets_what_the_site_names_besides(tmp_path):
    (tmp_path / "site.json").write_text('{"environment": ["DATA_ROOT", "HTTPS_PROXY", "NOT_THERE"]} # where it is\n')
    more = read_site_settings(tmp_path).environment
    environ = {"DATA_ROOT": "/data", "HTTPS_PROXY": "http://proxy", "DATA_ROOT_KEY": "secret", "HOME": "/root"}
    assert script_environment(environ, more) == {"DATA_ROOT": "/data", "HTTPS_PROXY": "http://proxy", "HOME": "/root"}


def test_without_the_file_nothing_is_added(tmp_path):
    assert read_site_settings(tmp_path) == SiteSettings(environment=())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "site.json:1:1: an object {...} is needed"),
        ("{", "site.json:1:2: not JSON"),
        ('{"environment": "HOME"}', "site.json:1:2: environment: a list of names is needed"),
        ('{"environment": ["A", "B*"]}', "site.json:1:23: environment[1]: the name of a variable is needed"),
        ('{\n "enviroment": ["A"]}', "site.json:2:2: enviroment: unknown key; there is environment"),
        ('{"environment": [], "environment": ["A"]}', "site.json:1"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path, text, said):
    (tmp_path / "site.json").write_text(text)
    with pytest.raises(BadInput) as refusal:
        read_site_settings(tmp_path)
    assert said in str(refusal.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "site.json").write_bytes(b"\xff{")
    with pytest.raises(BadInput, match="cannot be read"):
        read_site_settings(tmp_path)
