"""Texts that come with Python itself, as two sets of documents: its language reference, and its library's code."""

import inspect
from collections.abc import Callable, Sequence
from importlib import import_module

PROSE_MODULES = ("pydoc_data.topics",)
CODE_MODULES = (
    "argparse", "ast", "bdb", "calendar", "collections", "configparser", "csv", "datetime", "decimal", "difflib",
    "doctest", "email.message", "enum", "fractions", "ftplib", "heapq", "http.client", "imaplib", "inspect",
    "ipaddress", "json.decoder",
    "logging", "mailbox", "optparse", "pathlib", "pdb", "pickle", "plistlib", "random", "shutil",
    "smtplib", "statistics", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "traceback", "turtle",
    "typing", "unittest.case", "unittest.mock", "urllib.request", "uuid", "zipfile",
)  # fmt: skip


def prose() -> list[str]:
    """Give the topics of Python's language reference, longest first."""
    topics: dict[str, str] = import_module(PROSE_MODULES[0]).topics
    return sorted(topics.values(), key=lambda text: (-len(text), text))


def code() -> list[str]:
    """Give the sources of modules of the standard library."""
    return [inspect.getsource(import_module(name)) for name in CODE_MODULES]


def documents(texts: Sequence[str], encode: Callable[[str], list[int]], num: int, num_tokens: int) -> list[list[int]]:
    """Take the first tokens of the first texts that are long enough.

    Raises
    ------
    ValueError
        If there are too few.
    """
    found = []
    for text in texts:
        tokens = encode(text[: 12 * num_tokens])
        if len(tokens) >= num_tokens:
            found.append(tokens[:num_tokens])
        if len(found) == num:
            return found
    raise ValueError(f"documents must be {num} of {num_tokens} tokens, got {len(found)}")
