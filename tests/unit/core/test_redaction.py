import json

import pytest

from tlbatch.config.load import changed_keys, load_job
from tlbatch.core.errors import UserError
from tlbatch.core.redaction import hidden, holds_secret, is_secret_name

BASE = ["data.source=tars", "phase=[{cut='pool'}]"]
SECRETS = [
    "https://user:pw123@host/a.tar",
    "https://pw123@host/a.tar",
    "ftp://user:pw123@host/a.tar",
    "https://host/a.tar?x=1&X-Amz-Signature=pw123&y=2",
    "https://host/a.tar?sig=pw123",
    "https://host/{000..009}.tar?AWSAccessKeyId=pw123",
    "https://host/a.tar?api_key=pw123",
    "pipe:curl -s 'https://user:pw123@host/a.tar'",
    "pipe:curl -H 'Authorization: Bearer pw123' https://host/a.tar",
]
PLAIN = [
    "https://host:8080/a@b/{000..009}.tar?version=3",
    "s3://bucket/a:b@c.tar",
    "abfs://container@account.example/a.tar",
    'pipe:curl -H "Authorization: Bearer $TOKEN" https://host/a.tar?token=$TOKEN',
    "pipe:ssh user@host cat 'a b'.tar",
    "https://$USER:$PASSWORD@host/a.tar",
]


@pytest.mark.parametrize("url", SECRETS)
def test_an_address_with_a_secret_is_refused_without_saying_it(url: str) -> None:
    with pytest.raises(UserError) as error:
        load_job([], [*BASE, f"data.urls={json.dumps(['https://host/first.tar', url])}"])
    assert str(error.value) == (
        "data.urls: number 1 contains what looks like a password or key, and the job is stored; put it into ~/.netrc, "
        "fsspec's own configuration, or a variable that a pipe reads"
    )
    assert "pw123" not in hidden(url)
    assert hidden(url).count("***") == 1


@pytest.mark.parametrize("url", PLAIN)
def test_an_address_without_a_secret_is_taken_as_it_is(url: str) -> None:
    assert hidden(url) == url
    assert not holds_secret(url)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True), ("GITHUB_TOKENS", True), ("hftoken", True), ("AWS_SECRET_ACCESS_KEY", True),
        ("AWS_ACCESS_KEY_ID", True), ("WANDB_API_KEY", True), ("APIKEY", True), ("DB_PASSWORD", True),
        ("DB_PASSWD", True), ("MY_CREDENTIALS", True), ("SSH_PRIVATE_KEY", True), ("CLIENT_SECRET", True),
        ("TOKENIZERS_PARALLELISM", False), ("NCCL_DEBUG", False), ("AWS_SHARED_CREDENTIALS_FILE", False),
        ("KEYBOARD", False), ("OMP_PLACES", False), ("MONKEY", False),
    ],
)  # fmt: skip
def test_a_name_says_whether_its_value_is_a_secret(name: str, *, secret: bool) -> None:
    assert is_secret_name(name) is secret


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("slurm.environment.HF_TOKEN=pw123", "slurm.environment: HF_TOKEN looks like a secret, and the job is stored"),
        (
            "slurm.environment.http_proxy=http://me:pw123@proxy",
            "slurm.environment: http_proxy looks like a secret, and the job is stored; export it in the shell",
        ),
        ("slurm.environment={'a b'='pw123'}", "slurm.environment: 'a b' must be letters, digits or '_', and not begin"),
        ('slurm.environment={A="pw123\\u0000"}', "slurm.environment: A must not contain the character NUL; leave"),
        ("slurm.environment=['pw123']", "slurm.environment: must be a valid dictionary"),
        ("slurm.environment.A=[['pw123']]", "slurm.environment.A: must be a valid string"),
        ("slurm.setup=['true', 'export TOKEN=pw123']", "slurm.setup: number 1 contains what looks like a password or"),
        ("slurm.setup=['curl https://me:pw123@host/a']", "slurm.setup: number 0 contains what looks like a password"),
        ('slurm.setup=["a\\u0000"]', "slurm.setup: number 0 must not contain the character NUL; leave it out"),
        ("slurm.setup=export TOKEN=pw123", "slurm.setup: must be a valid tuple"),
        ("data.urls=https://me:pw123@host/a.tar", "data.urls: must be a valid tuple"),
    ],
)  # fmt: skip
def test_what_could_be_a_secret_is_refused_and_not_said(override: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        load_job([], ["data.images=eyes", BASE[1], override])
    assert str(error.value).startswith(line)
    assert "pw123" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", ["export TOKEN=$(cat ~/.token)", 'TOKEN="$HUSH"', "TOKEN=`cat f`", "TOKEN= ", "A=1"])
def test_a_setup_line_that_reads_a_secret_is_taken(line: str) -> None:
    assert load_job([], ["data.images=eyes", BASE[1], f"slurm.setup={json.dumps([line])}"]).slurm.setup == (line,)


def test_shell_lines_variables_and_addresses_are_no_settings_to_be_told() -> None:
    told = load_job([], [
        *BASE, "data.urls=['https://host/a.tar']", "slurm.setup=['export A=secret']", "slurm.environment.B=hush",
        "slurm.interface=ib0",
    ])  # fmt: skip
    assert dict(changed_keys(told)) == {"data.source": "tars", "slurm.interface": "ib0"}
