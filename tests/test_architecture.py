"""What is imported when, how large files and functions may grow, and where the published numbers may stand."""

import ast
import csv
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CORE = ("mosaic", "sim")
CODE = (*CORE, "experiments")
LAZY = (
    "vllm", "torch", "pyomo", "highspy", "matplotlib", "pyarrow", "scipy", "hydra", "omegaconf", "sympy", "mpmath",
    "aiohttp", "ray",
)  # fmt: skip
"""What ``import mosaic`` and a simulated run must not need."""
MUST_BE_PREDICTED = {1557, 1601, 1668, 1637, 526, 585, 551, 527, 925, 945, 896}
"""Published walls of the ILP in seconds: nothing may be fitted to them."""
GATED_WALLS = {870.5, 122.09, 227.73}
"""Published walls of the aggregator at tau = 2/3, in seconds: nothing may be fitted to them."""
PUBLISHED = "experiments/studies/published"
READERS = {"experiments/studies/paper.py", "experiments/studies/paper_figures.py"}
"""Who may read the published predictions; fits read the rest of the table by ``fit_target``."""
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 50


def files(folder: str, pattern: str = "*.py") -> list[str]:
    paths = (path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern))
    return sorted(path for path in paths if "__pycache__" not in path)


CORE_FILES = [path for folder in CORE for path in files(folder)]
CODE_FILES = [path for folder in CODE for path in files(folder)]
ALL_FILES = [*CODE_FILES, *files("tests")]
YAML_FILES = [*files("conf", "*.yaml"), *files("experiments", "*.yaml")]


@cache
def source(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def tree(path: str) -> ast.Module:
    return ast.parse(source(path))


@cache
def imports(path: str) -> frozenset[str]:
    """Name all imports of a file, those inside functions included; ``from a import b`` counts as a and as a.b."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def test_the_rules_see_the_code() -> None:
    assert {
        "mosaic/core/plan.py",
        "mosaic/planning/program/model.py",
        "sim/engine/engine.py",
        "experiments/run.py",
    } <= set(CODE_FILES)
    assert "conf/hardware/a100_80gb.yaml" in YAML_FILES


def test_vllm_torch_and_ray_are_imported_inside_functions() -> None:
    eager = [
        f"{path}:{node.lineno}"
        for path in files("mosaic")
        for node in tree(path).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if name.split(".")[0] in ("vllm", "torch", "ray")
    ]
    assert eager == []


@pytest.mark.parametrize(
    "modules", ["mosaic", "sim.cluster.backend", "mosaic.planning.program.schedulers, mosaic.planning.explain"]
)
def test_imports_stay_light(modules: str) -> None:
    code = f"import sys, {modules}; print([name for name in {LAZY} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_files_fit_in_one_sitting() -> None:
    lengths = {path: len(source(path).splitlines()) for path in CORE_FILES}
    assert {path: lines for path, lines in lengths.items() if lines >= MAX_FILE_LINES} == {}


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function beside its docstring, and beside the options where it is a command of `mosaic`."""
    first = function.body[0]
    is_command = any(ast.unparse(decorator).startswith("app.command") for decorator in function.decorator_list)
    lines = (function.end_lineno or function.lineno) - (first if is_command else function).lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def test_functions_are_short() -> None:
    lengths = {
        f"{path}:{node.name}": num_lines(node)
        for path in CORE_FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines >= MAX_FUNCTION_LINES} == {}


def test_code_is_ascii() -> None:
    paths = [*ALL_FILES, *YAML_FILES, "pyproject.toml", "constraints.txt", ".ci/run"]
    strange = {
        f"{path}:{number}": line
        for path in paths
        for number, line in enumerate(source(path).splitlines(), start=1)
        if not line.isascii()
    }
    assert strange == {}


def test_modules_are_named_for_what_they_hold() -> None:
    vague = re.compile(r"(^|_)(util|utils|helper|helpers|manager|misc|common)(_|$)")
    assert [path for path in ALL_FILES if vague.search(Path(path).stem)] == []


def numbers_in_text(text: str) -> set[float]:
    """Find the numbers in a comment; thousands may be grouped by commas."""
    return {float(found.replace(",", "")) for found in re.findall(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?!\w)", text)}


def numbers_in_code(path: str) -> Iterator[tuple[int, float]]:
    """List the numbers of a Python file, with their lines: literals, and those in comments."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
            yield node.lineno, float(node.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from ((node.lineno, number) for number in numbers_in_text(node.value))
    for token in tokenize.generate_tokens(io.StringIO(source(path)).readline):
        if token.type == tokenize.COMMENT:
            yield from ((token.start[0], number) for number in numbers_in_text(token.string))


def scalars(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """List the scalars of a YAML file by their dotted keys; the keys of a list are those of the list."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from scalars(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            yield from scalars(item, key)
    else:
        yield key, value


def numbers_in_yaml(path: str) -> Iterator[tuple[str, float]]:
    """List the numbers of a YAML file with their keys: numeric scalars, and those in comments."""
    for key, value in scalars(yaml.safe_load(source(path))):
        # NOTE: operator tables are text, with measured microseconds that may be any number.
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key, float(value)
    for number, line in enumerate(source(path).splitlines(), start=1):
        yield from ((f"line {number}", found) for found in numbers_in_text(line.partition("#")[2]))


def test_numbers_are_found_wherever_they_stand(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text('x = [1557, 5.26e2]  # or 1,601 s\ny = f"{x} of 1,668.0 s, not v1637 or 15270"\n')
    found = {number for _, number in numbers_in_code(str(code))}
    assert found & MUST_BE_PREDICTED == {1557, 526, 1601, 1668}
    data = tmp_path / "data.yaml"
    data.write_text("a: {b: [585, 1]}  # 551\ntable: '527 9'\n")
    assert set(numbers_in_yaml(str(data))) == {("a.b", 585.0), ("a.b", 1.0), ("line 1", 551.0)}


def test_published_predictions_stand_in_one_table_only() -> None:
    found = [
        f"{path}:{line} holds {number:g}"
        for path in CODE_FILES
        for line, number in numbers_in_code(path)
        if number in MUST_BE_PREDICTED | GATED_WALLS
    ]
    assert found == []
    rows = list(csv.DictReader(source(f"{PUBLISHED}.csv").splitlines()))
    predicted = {float(row["value"]) for row in rows if row["kind"] == "predicted"}
    assert predicted >= MUST_BE_PREDICTED | GATED_WALLS
    assert not {float(row["value"]) for row in rows if row["kind"] != "predicted"} & (MUST_BE_PREDICTED | GATED_WALLS)


def test_no_configuration_holds_a_published_prediction() -> None:
    measured = {("conf/expert/qwen_0_5b.yaml", "shape.hidden_size")}  # a model's dimension, by coincidence
    found = {
        (path, key): number
        for path in YAML_FILES
        for key, number in numbers_in_yaml(path)
        if number in MUST_BE_PREDICTED | GATED_WALLS and not key.endswith("prompt_token_quantiles")
    }
    assert {place: number for place, number in found.items() if place not in measured} == {}


def test_only_reports_read_the_published_predictions() -> None:
    readers = {path for path in CODE_FILES for name in imports(path) if name.endswith(".read_published")}
    assert readers == READERS
    named = {path for path in CODE_FILES if "read_published" in source(path) or "published.csv" in source(path)}
    assert named == {*READERS, f"{PUBLISHED}.py"}
    assert [path for path in CODE_FILES if "experiments.studies.published.*" in imports(path)] == []
