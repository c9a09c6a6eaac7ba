import pytest

from tlbatch.core.cli import with_new_options


def test_renamed_options_are_read_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert with_new_options(["RUN", "--anyway=why", "--inside", "--local"]) == [
        "RUN", "--override=why", "--in-allocation", "--local",
    ]  # fmt: skip
    assert capsys.readouterr().err.splitlines() == [
        "warning: --anyway is now --override; the old name works for one version",
        "warning: --inside is now --in-allocation; the old name works for one version",
    ]
