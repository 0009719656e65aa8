"""The wheel of the working tree, and environments that have it."""

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from tests.readme_blocks import ROOT


def call(*command: object, cwd: Path) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tracked_files() -> Sequence[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def build_wheel(copy: Path) -> Path:
    """Build the source distribution from a copy in an empty folder, and from it the wheel; both are in its `dist`.

    A build leaves folders behind, hence the copy.
    """
    for name in tracked_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    call(sys.executable, "-m", "build", "--no-isolation", cwd=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


def borrowing_environment(wheel: Path, folder: Path) -> Path:
    """Make an environment that has the wheel, and all else from the one that runs the tests.

    A folder that a .pth file names is searched, but .pth files in it are not read: an editable install of the checkout
    stays behind.
    """
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    call(*pip, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder)
    (site_packages,) = (folder / "lib").glob("python*/site-packages")
    borrowed = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site_packages / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))
    return folder
