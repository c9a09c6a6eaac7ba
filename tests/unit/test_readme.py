import re
import tomllib
from pathlib import Path

from tlbatch import status
from tlbatch.submit import _parser, key_table

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_readme_lists_every_key_as_help_does() -> None:
    block = README.split("<!-- keys")[1].split("```")[1].strip("\n")
    assert block == key_table()


def test_the_readme_names_every_option_of_submit_and_status() -> None:
    options = re.findall(r"--[a-z-]+", _parser().format_usage() + status._parser().format_usage())
    assert options
    assert [option for option in options if f"`{option}`" not in README] == []


def test_every_cause_of_a_user_error_stands_in_the_readme() -> None:
    """The fixed words of each message, cut where values stand, must hold a phrase of the table."""
    table = README.split("## When it fails")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
    patterns = [re.escape(phrase.strip()).replace(r"\.\.\.", ".*") for row in rows for phrase in row.split(";")]
    call = re.compile(r"raise (?:User|Stopped)Error\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)")
    missing = []
    for file in sorted((Path(__file__).parents[2] / "tlbatch").rglob("*.py")):
        for found in call.finditer(file.read_text("utf-8")):
            text = " ".join("".join(re.findall(r'f?"((?:[^"\\]|\\.)*)"', found[1])).split())
            if "; " in text and not any(re.search(pattern, text) for pattern in patterns):
                missing.append(f"{file.name}: {text}")
    assert missing == []


def test_every_example_of_a_job_file_is_toml() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        assert tomllib.loads(block)
