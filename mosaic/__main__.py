"""The command `mosaic`: a door to the commands in experiments/."""

from importlib import import_module

from mosaic.bundled import make_importable


def main() -> None:
    """Run what the command line asks for."""
    make_importable()
    import_module("experiments.command").main()


if __name__ == "__main__":
    main()
