"""Names of experts, stages and sweeps' points as names of files: whatever the name, one file in the folder meant."""

import re
from urllib.parse import unquote

_UNSAFE = re.compile(r"[%/\x00-\x1f\x7f]|^\.{1,2}$")


def file_name(text: str) -> str:
    """Encode a text as the name of one file: no path leads out of a folder, and different texts stay different.

    Examples
    --------
    >>> file_name("workload.path=../mine.jsonl,seed=0"), file_name("..")
    ('workload.path=..%2Fmine.jsonl,seed=0', '%2E%2E')
    """
    return _UNSAFE.sub(lambda found: "".join(f"%{ord(letter):02X}" for letter in found[0]), text)


def from_file_name(name: str) -> str:
    """Decode what `file_name` has encoded."""
    return unquote(name)
