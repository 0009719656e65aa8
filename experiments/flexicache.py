"""What a sparse KV cache does to a model.

    python experiments/flexicache.py checkpoint MODEL.gguf CHECKPOINT       a GGUF file as a checkpoint (extra: gguf)
    python experiments/flexicache.py heads CHECKPOINT                       which KV heads are unstable, and how much so
    python experiments/flexicache.py quality CHECKPOINT --heads heads.json  what a budget of pages costs, text by text

All write into results/multirun/flexicache unless --out names a folder.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

from mosaic.config.places import own_folder, write_file  # noqa: E402
from mosaic.figures.style import pdf_bytes, png_bytes  # noqa: E402


def checkpoint(options: argparse.Namespace) -> None:
    """Turn a GGUF file of a Llama-type model into a checkpoint."""
    from experiments.kv_heads.gguf_checkpoint import write_gguf_checkpoint

    write_gguf_checkpoint(options.file, options.checkpoint)
    print(f"written: {options.checkpoint}")


def heads(options: argparse.Namespace) -> None:
    """Profile the KV heads of a checkpoint on two sets of documents."""
    from experiments.kv_heads.report import heads_report, read_heads_found
    from experiments.kv_heads.study import profile_sets

    options.out.mkdir(parents=True, exist_ok=True)
    profile_sets(options.checkpoint, options.out)
    write_file(options.out / "heads.md", heads_report(read_heads_found(options.out / "heads.json")))


def quality(options: argparse.Namespace) -> None:
    """Score texts with budgets of pages; a table that is there is continued."""
    from experiments.kv_heads.report import quality_figure, quality_report
    from experiments.kv_heads.study import NUM_TEXTS, SCORED_TOKENS, load_heads, read_qualities, score_texts

    table = options.out / "quality.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    score_texts(options.checkpoint, load_heads(options.heads), table)
    rows = read_qualities(table)
    drawn = quality_figure(rows)
    write_file(options.out / "quality.md", quality_report(rows, NUM_TEXTS, SCORED_TOKENS))
    write_file(options.out / "quality.png", png_bytes(drawn))
    write_file(options.out / "quality.pdf", pdf_bytes(drawn))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="flexicache", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    found = commands.add_parser("checkpoint", help=checkpoint.__doc__)
    found.set_defaults(run=checkpoint)
    found.add_argument("file", type=Path, help="GGUF file")
    found.add_argument("checkpoint", type=Path, help="folder to write")
    for run in (heads, quality):
        found = commands.add_parser(run.__name__, help=run.__doc__)
        found.set_defaults(run=run)
        found.add_argument("checkpoint", type=Path, help="folder of a Llama-type checkpoint")
    found.add_argument("--heads", type=Path, required=True, help="list of unstable heads, of the command heads")
    for command in commands.choices.values():
        command.add_argument("--out", type=Path, default=own_folder("flexicache"), help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    options.run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
