"""The reference, from the code at every build: directives ``{commands}`` and ``{keys} GROUP...``, and numpydoc.

Commands, options and defaults come from Typer's app. Keys, values and comments come from the files of ``conf/``.
The types and limits of keys come from the typed sections of the configuration, and from the classes that files name.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import yaml
from docutils.nodes import Node
from sphinx.application import Sphinx
from sphinx.ext import napoleon
from sphinx.ext.napoleon import NumpyDocstring
from sphinx.util.docutils import SphinxDirective
from typer.main import get_command

from mosaic.commands.app import app
from mosaic.config.compose import CONF
from mosaic.config.sections import Sections
from mosaic.core.checks import Limit

PARTS = {
    "expert": "Parts of a pool: a model's shape and limits",
    "lengths": "Parts of a world: how much experts write",
    "answers": "Parts of a world: how experts answer",
    "questions": "Parts of a workload",
    "policy": "Presets, put on top: a scheduler with its costs, or a whole system (`+policy=NAME`)",
    "experiment": "Presets, put on top: an ablation, or the replay of a log (`+experiment=NAME`)",
}
"""Folders of conf/ that are no group of a run."""
ROOT_FILE = CONF / "config.yaml"
UNREAD = {"_target_", "_partial_", "defaults", "hydra"}
"""Keys that Hydra reads, and a user does not set."""


UNSAID = {"", "true or false", "text", "text or null", "group", "group or null", " or null"}
"""Types that a key's value shows, or that are of no help."""


class Key(NamedTuple):
    """A key of a file of conf/."""

    name: str
    value: str
    comment: str


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in line)} |" for line in lines
    )


def commands() -> Iterator[str]:
    """Describe the commands of `mosaic`: arguments, options and defaults."""
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        yield f"## mosaic {name}"
        yield command.help
        rows = []
        for parameter in command.params:
            is_option = parameter.param_type_name == "option"
            default = "" if parameter.default in (None, False) else f"`{parameter.default}`"
            shown = ", ".join(parameter.opts) if is_option else (parameter.metavar or parameter.name.upper())
            rows.append([f"`{shown}`", parameter.help or "", "required" if parameter.required else default])
        if rows:
            yield table(["argument or option", "meaning", "default"], rows)


def about(path: Path) -> str:
    """Describe a file: its evidence, or the comment that begins it, without commands, or its checkpoint."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#   "):
            if lines and not lines[-1].endswith((".", ":")):
                lines.pop()  # it leads to the command alone
        elif line.startswith("# "):
            lines.append(line.removeprefix("# "))
        else:
            break
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    text = " ".join(line for line in lines if not line.startswith("@"))
    return str(values.get("evidence") or text.removesuffix(":") or values.get("checkpoint") or "")


def keys_of(path: Path) -> list[Key]:
    """List the keys of a file with their values and the comments on their lines."""
    text = path.read_text(encoding="utf-8")
    found: list[Key] = []

    def walk(node: yaml.Node, owner: str) -> None:
        assert isinstance(node, yaml.MappingNode)
        for key, value in node.value:
            if key.value in UNREAD:
                continue
            name = f"{owner}{key.value}"
            line = text.splitlines()[
                value.end_mark.line if value.start_mark.line == value.end_mark.line else key.start_mark.line
            ]
            comment = re.search(r"\s# ?(.*)$", line)
            is_block = isinstance(value, yaml.MappingNode) and not value.flow_style
            if is_block or value.start_mark.line == value.end_mark.line:
                shown = "" if is_block else text[value.start_mark.index : value.end_mark.index]
                if not is_block or comment:
                    found.append(Key(name, shown, comment[1] if comment else ""))
            if is_block:
                walk(value, f"{name}.")

    node = yaml.compose(text)
    if isinstance(node, yaml.MappingNode):
        walk(node, "")
    return found


def kind(hint: Any) -> str:
    """Describe a type and its limits in a few words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = [limit for limit in arguments[1:] if isinstance(limit, Limit)]
        return " ".join([kind(arguments[0]), *filter(None, map(limit_text, limits))])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(f"`{member.value}`" for member in hint)
    if arguments and type(None) in arguments:
        return " or ".join([*(kind(item) for item in arguments if item is not type(None)), "null"])
    if origin is tuple:
        return f"list of {kind(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "group"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(hint, "")


def limit_text(limit: Limit) -> str:
    """Describe the limits of a number."""
    words = {"at_least": "at least", "above": "above", "at_most": "at most", "below": "below"}
    given = [(word, getattr(limit, name)) for name, word in words.items()]
    return ", ".join(f"{word} {value:g}" for word, value in given if value is not None)


def types_of(owner: Any, prefix: str = "") -> dict[str, str]:
    """Describe the types of a section's keys, and of the sections in it."""
    found = {}
    for name, hint in get_type_hints(owner, include_extras=True).items():
        inner = next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), None)
        found[prefix + name] = kind(hint)
        if inner is not None:
            found |= types_of(inner, f"{prefix}{name}.")
    return found


def target_types(path: Path) -> dict[str, str]:
    """Describe the types of what a file names by `_target_`, where that is a class of typed fields."""
    target = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("_target_")
    if target is None or target.startswith("experiments."):  # studies may need what the site does not
        return {}
    module, _, name = target.rpartition(".")
    made = getattr(import_module(module), name)
    return types_of(made) if is_dataclass(made) else {}


def keys(groups: Iterable[str]) -> Iterator[str]:
    """Describe groups of conf/, each with its choices and its keys; `run` is the root."""
    typed = types_of(Sections)
    for group in groups:
        if group == "run":
            yield "## Keys of a run"
            yield key_table("", keys_of(ROOT_FILE), typed)
            continue
        default = default_choices().get(group)
        files = sorted((CONF / group).glob("*.yaml"), key=lambda path: (path.stem != default, path.stem))
        yield f"## {group}"
        if group in PARTS:
            yield f"{PARTS[group]}."
        yield table(["choice", "what it is"], [[f"`{path.stem}`", about(path)] for path in files])
        if group not in PARTS:
            own = {name.removeprefix(f"{group}."): text for name, text in typed.items() if name.startswith(f"{group}.")}
            yield group_keys(group, files, own)


def default_choices() -> dict[str, str]:
    """Return the default choice of every group."""
    entries = yaml.safe_load(ROOT_FILE.read_text(encoding="utf-8"))["defaults"]
    return {name: value for entry in entries if isinstance(entry, dict) for name, value in entry.items()}


def group_keys(group: str, files: Iterable[Path], types: Mapping[str, str]) -> str:
    """Write the table of the keys that files of a group have, the first file's values first."""
    found: dict[str, Key] = {}
    for path in files:
        types = {**target_types(path), **types}
        for key in keys_of(path):
            known = found.setdefault(key.name, key)
            if not known.comment:
                found[key.name] = known._replace(comment=key.comment)
    return key_table(f"{group}.", [key for key in found.values() if key.comment or key.name in types], types)


def key_table(owner: str, found: Iterable[Key], types: Mapping[str, str]) -> str:
    """Write the table of keys."""
    rows = []
    for key in found:
        limits = "" if types.get(key.name, "") in UNSAID else f"({types[key.name]})"
        meaning = f"{key.comment.removesuffix(':')} {limits}"
        rows.append([f"`{owner}{key.name}`", f"`{key.value}`" if key.value else "", meaning])
    return table(["key", "value", "meaning (type)"], rows) if rows else ""


class Commands(SphinxDirective):
    """Puts the reference of the commands in its place."""

    def run(self) -> list[Node]:
        """Write it."""
        return self.parse_text_to_nodes("\n\n".join(commands()), allow_section_headings=True)


class Keys(SphinxDirective):
    """Puts the reference of some groups of the configuration in its place."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[Node]:
        """Write it."""
        return self.parse_text_to_nodes("\n\n".join(keys(self.arguments[0].split())), allow_section_headings=True)


def read_numpydoc(_app: Sphinx, what: str, name: str, it: object, options: object, lines: list[str]) -> None:
    """Read a docstring as numpydoc, but not an attribute's: napoleon takes what stands before a colon for its type."""
    if what not in ("attribute", "property"):
        lines[:] = NumpyDocstring(lines, napoleon.Config(), None, what, name, it, options).lines()


def setup(application: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    application.add_directive("commands", Commands)
    application.add_directive("keys", Keys)
    application.connect("autodoc-process-docstring", read_numpydoc)
    return {"parallel_read_safe": True}
