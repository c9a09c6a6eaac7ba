"""What the code of the package may never do."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tlbatch"
RUN_CODE = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml"}
"""Modules that can run code that lies in a file."""
UNPICKLES = {"load", "loads", "Unpickler", "Pickler", "dump", "dumps", "open", "read_pickle", "result", "results"}
"""What of them, or of others, does; submitit's result() and results() unpickle what the tasks left."""
NEEDS_WEIGHTS_ONLY = {"torch.load", "load_state_dict_from_url", "get_state_dict"}


def faults(code: str) -> Iterator[str]:
    """What of the code unpickles, or runs a shell on a text."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in RUN_CODE:
            yield f"from {node.module} import"
        if isinstance(node, ast.Import):
            yield from (f"import {one.name}" for one in node.names if one.name in RUN_CODE - {"pickle"})
        if isinstance(node, ast.Call):
            yield from _faults_of_call(node)


def _faults_of_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    module, _, name = called.rpartition(".")
    set_to = {key.arg: ast.unparse(key.value) for key in node.keywords if key.arg}
    needs = called in NEEDS_WEIGHTS_ONLY or name in NEEDS_WEIGHTS_ONLY
    if needs and set_to.get("weights_only") != "True":
        yield f"{called} without weights_only=True"
    if name == "load" and module in ("np", "numpy") and set_to.get("allow_pickle") != "False":
        yield f"{called} without allow_pickle=False"
    if set_to.get("allow_pickle", "False") != "False" or set_to.get("weights_only", "True") != "True":
        yield f"{called} may unpickle"
    if (module in RUN_CODE and name in UNPICKLES) or name in ("read_pickle", "result", "results"):
        yield f"{called} unpickles"
    if "shell" in set_to or called in ("os.system", "os.popen", "eval", "exec"):
        yield f"{called} runs a text"


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(file)", "torch.load(file, weights_only=False)", "torch.load(file, weights_only=trusted)",
        "weights.get_state_dict(progress=False)", "torch.hub.load_state_dict_from_url(url)", "np.load(file)",
        "np.load(file, allow_pickle=True)", "np.save(file, rows, allow_pickle=maybe)", "pickle.load(file)",
        "pickle.Unpickler(file)", "from pickle import loads", "from yaml import load", "import joblib", "import shelve",
        "pd.read_pickle(file)", "job.result()", "job.results()", "subprocess.run(text, shell=True)", "os.system(text)",
        "eval(text)",
    ],
)  # fmt: skip
def test_the_search_finds_what_is_forbidden(code: str) -> None:
    assert list(faults(code))


def test_nothing_in_the_package_unpickles_or_runs_a_text_as_code() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 50
    assert [f"{file.name}: {fault}" for file in files for fault in faults(file.read_text("utf-8"))] == []
