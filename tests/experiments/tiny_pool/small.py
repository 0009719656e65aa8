"""A pool's skill profiles without a pool."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SCORES = {
    "TinySage": {"addition": 138, "digit_sum": 182, "maximum": 6},
    "TinyOwl": {"addition": 94, "digit_sum": 86, "maximum": 184},
    "TinyDart": {"addition": -68, "digit_sum": 82, "maximum": 182},
    "TinyFinch": {"addition": 52, "digit_sum": 36, "maximum": 146},
    "TinySwift": {"addition": -72, "digit_sum": 188, "maximum": 98},
}
"""As an early pool was measured."""


def write_scores(folder: Path) -> Path:
    path = folder / "skill_profiles.json"
    path.write_text(json.dumps(SCORES), encoding="utf-8")
    return path
