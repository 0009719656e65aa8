"""A rule of one's own takes two files: the class and the YAML file of the README make one that decides."""

import sys
from types import ModuleType

import pytest
import yaml

from mosaic.config.instantiation import make
from mosaic.pipelines import Rule
from mosaic.pipelines.walk import walk
from tests.answered_questions import answered, make_moa, make_question
from tests.readme_blocks import ROOT, blocks_of


def test_the_readmes_class_and_yaml_file_are_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    code, config = (block.text for block in blocks_of(ROOT / "mosaic" / "pipelines" / "rules" / "README.md"))
    settings = yaml.safe_load(config)
    module = ModuleType(settings["_target_"].rpartition(".")[0])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, module.__dict__)
    rule: Rule = make(settings, "gate")
    question, first, done = answered(make_question("q"), ["A", "B", "A"])
    assert walk(make_moa(rule), question, first, {}).answer is None
    assert walk(make_moa(rule), question, first, dict(list(done.items())[::2])).cancel == (first[1].key,)
    answer = walk(make_moa(rule), question, first, done).answer
    assert answer is not None
    assert (answer.answer, rule.promise(), rule.name) == ("A", None, "all_but_one")
