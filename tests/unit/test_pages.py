import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tlbatch import status, submit
from tlbatch.config.load import config_keys

sys.path.insert(0, str(Path(__file__).parents[1]))

import pages
from error_texts import ErrorTexts, Message

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(file for name in ("jobs", "slurm", "tests", "tlbatch") for file in (ROOT / name).rglob("*.md")),
    ]
)
KEYS = {re.sub(r"^(sweep|recipes)\..*", r"\1", key) for key, _, _ in config_keys()}
FILE_ENDINGS = (
    "csv",
    "html",
    "json",
    "jsonl",
    "md",
    "npz",
    "onnx",
    "pt",
    "pt2",
    "pth",
    "safetensors",
    "py",
    "sh",
    "svg",
    "tar",
    "toml",
    "txt",
)
CODE = """
_WAY = "submit the job again"
class LostError(UserError): ...
def fetch(file, names, *, missing="run shard first"):
    what = "no tar below it" if names else f"{counted(len(names), 'tar')}, not {file['count']}"
    if names:
        raise LostError(f"{file}: {what}; {missing}")
    raise UserError(
        f"data.urls: {', '.join(names) or 'none'} holds no {'class' if file else 'label'} "
        f"({file!r}); " + _WAY
    )
def open(file):
    fetch(file, [], missing="run train first")
    rejected.append(Rejected(key=file, cause=_cause(file)))
def _cause(file):
    return "has no label" if file else ""
"""


def names(files: list[Path]) -> list[str]:
    return [file.relative_to(ROOT).as_posix() for file in files]


def text_of(*documents: str) -> str:
    """The text of those documents that are there."""
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in documents if (ROOT / name).exists())


@pytest.mark.parametrize("page", ["jobs/keys.md", "jobs/errors.md"])
def test_a_page_is_what_the_code_says_now(page: str) -> None:
    made = pages.pages()[ROOT / page]
    assert (ROOT / page).read_text(encoding="utf-8") == made, f"{page} is out of date; run python tests/pages.py"


def test_the_page_of_keys_has_every_line_of_help_once() -> None:
    page = text_of("jobs/keys.md")
    for line in submit.key_table().splitlines():
        assert page.count(f"\n| `{line.split()[0]}` |") == 1


def test_messages_are_read_with_their_words_and_without_their_values(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "read.py").write_text(CODE)
    texts = ErrorTexts(tmp_path)
    assert texts.messages("error")["data"] == {
        Message("no tar below it", "run train first"),
        Message("… tars, not …", "run train first"),
        Message("data.urls: … holds no class (…)", "submit the job again"),
        Message("data.urls: … holds no label (…)", "submit the job again"),
    }
    assert texts.messages("image")["data"] == {Message("has no label", "")}


def test_every_option_of_submit_and_status_is_described() -> None:
    options = re.findall(r"--[a-z-]+", submit._parser().format_usage() + status._parser().format_usage())
    text = text_of("README.md", "slurm/README.md")
    assert options
    assert [option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", text)] == []


@pytest.mark.parametrize("document", ["README.md", "jobs/README.md", "slurm/README.md"])
def test_every_example_of_a_job_file_is_toml(document: str) -> None:
    for block in re.findall(r"^ *```toml\n(.*?)^ *```", text_of(document), re.DOTALL | re.MULTILINE):
        assert tomllib.loads(block)


@pytest.mark.parametrize("document", names(DOCUMENTS))
def test_every_relative_link_leads_somewhere(document: str) -> None:
    lost = [link for link in links_of(text_of(document)) if not leads_somewhere(ROOT / document, link)]
    assert lost == []


@pytest.mark.parametrize("document", [one for one in names(DOCUMENTS) if one != "CHANGELOG.md"])  # it names old keys
def test_every_key_that_a_document_names_exists(document: str) -> None:
    assert [word for word in key_words(text_of(document)) if not is_key(word)] == []


def links_of(text: str) -> list[str]:
    """Relative links, the images among them."""
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", re.sub(r"`[^`\n]*`", "", without_blocks(text)))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def leads_somewhere(document: Path, link: str) -> bool:
    path, _, heading = link.partition("#")
    target = document.parent / path if path else document
    return target.exists() and (not heading or heading in anchors(target.read_text(encoding="utf-8")))


def anchors(text: str) -> Iterator[str]:
    """Names of the headings, as GitHub makes them."""
    for heading in re.findall(r"^#+ +(.*?) *$", without_blocks(text), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def key_words(text: str) -> Iterator[str]:
    """Words in backticks that begin as a key of a section does, and are no file, module or call."""
    sections = "|".join(sorted({key.split(".")[0] for key in KEYS if "." in key}))
    for span in re.findall(r"`([^`\n]+)`", without_blocks(text)):
        for word in re.findall(rf"(?<![\w./<>:-])(?:{sections})\.[\w.]*(?![\w(/*])", span):
            found = word.rstrip(".")
            if found.rpartition(".")[2] not in FILE_ENDINGS and not is_module(found):
                yield found


def is_module(word: str) -> bool:
    place = ROOT / "tlbatch" / word.replace(".", "/")
    return place.is_dir() or place.with_name(f"{place.name}.py").exists()


def is_key(word: str) -> bool:
    """Whether it is a key, a section, or a name in a key that holds a table."""
    word = re.sub(r"^phase\.\d+", "phase.N", word)
    parts = word.split(".")
    starts = [(".".join(parts[:at]), parts[at]) for at in range(1, len(parts))]
    return any(f"{key}.".startswith(f"{word}.") for key in KEYS) or any(pages.is_table(*start) for start in starts)


def without_blocks(text: str) -> str:
    return re.sub(r"^ *(```|~~~).*?^ *\1", "", text, flags=re.DOTALL | re.MULTILINE)


def test_every_name_of_the_page_for_contributors_is_in_the_code() -> None:
    code = "\n".join(file.read_text("utf-8") for name in ("tlbatch", "tests") for file in (ROOT / name).rglob("*.py"))
    words = set(re.findall(r"\w+", code))
    page = (ROOT / "tlbatch" / "README.md").read_text("utf-8")
    named = {name.split("(")[0].split(".")[-1] for name in re.findall(r"`([A-Za-z_][\w.]*(?:\(\w*\))?)`", page)}
    assert len(named) > 80
    assert sorted(named - words - {"NAME", "from_NAME", "toml"}) == []
