"""The command `mosaic`."""

from mosaic.bundled import make_importable


def main() -> None:
    """Run what the command line asks for."""
    make_importable()
    from mosaic.commands.app import main as run_app

    run_app()


if __name__ == "__main__":
    main()
