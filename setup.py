"""The build: pyproject.toml says all but which folders a wheel takes along (mosaic/bundled/__init__.py says why)."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("sim", "conf")
SUFFIXES = (".py", ".yaml")


def bundled_files() -> Iterator[Path]:
    """List the files that stand beside mosaic/ in a checkout, and in mosaic/bundled in a wheel."""
    for folder in FOLDERS:
        yield from (path for path in sorted(Path(folder).rglob("*")) if path.suffix in SUFFIXES)


class BundlingBuild(build_py):
    """Builds the package, and in a wheel the bundle."""

    def run(self) -> None:
        """Build."""
        super().run()
        if self.editable_mode:  # the checkout has them
            return
        place = Path(self.build_lib) / "mosaic" / "bundled"
        for folder in FOLDERS:
            shutil.rmtree(place / folder, ignore_errors=True)  # an earlier build may have left what is gone
        for path in bundled_files():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place / path)


setup(cmdclass={"build_py": BundlingBuild})
