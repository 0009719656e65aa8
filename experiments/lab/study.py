"""A study as data: points of the configuration, what is measured at each, and the page and figures made of the rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from joblib import Parallel, delayed

from experiments.lab.tables import append_rows, read_table, write_table
from mosaic.config.compose import compose_config
from mosaic.config.job import build_job
from mosaic.core.checks import require_unique
from mosaic.figures.style import pdf_bytes, png_bytes
from mosaic.report.run_folder import write_file
from mosaic.runtime.garbage import spare_garbage_collector
from mosaic.runtime.job import Job

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

Label: TypeAlias = str | int | float | bool
Row: TypeAlias = Mapping[str, Label | None]
Rows: TypeAlias = Row | Sequence[Row]
"""What one measurement gives: a row, or several that columns of their own tell apart."""
Tables: TypeAlias = "Mapping[str, pl.DataFrame]"
"""The rows of a study by the name of their table."""
SEED = "seed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One configuration of a study."""

    labels: Mapping[str, Label]
    """Columns that tell its rows from those of other points."""
    overrides: tuple[str, ...] = ()
    """What the configuration differs in from the default one, as run.py takes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A table of a study: one measurement for each point and seed.

    Raises
    ------
    ValueError
        If two points have the same labels.
    """

    points: Sequence[Point]
    measure: Callable[[Point, int], Rows]
    """Return the measured columns of a point with a seed."""
    num_seeds: int = 1
    in_turn: bool = False
    """Rows are measured one after the other: they take times of the machine itself."""

    def __post_init__(self) -> None:
        require_unique((repr(dict(point.labels)) for point in self.points), "study: labels of points")


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A question, the sweeps that answer it, and how the answer is shown."""

    name: str
    about: str
    """One line for ``study.py --list``."""
    tables: Mapping[str, Sweep]
    """By the name of the CSV file."""
    report: Callable[[Tables], str]
    """Write the page, in Markdown, below its title and command."""
    title: str
    figures: "Mapping[str, Callable[[Tables], Figure]]" = field(default_factory=dict)
    """By the name of the PNG and PDF files."""


def on_jobs(measure: Callable[[Job], Rows]) -> Callable[[Point, int], Rows]:
    """Let a sweep measure the job of each point's configuration, with the seed as the run's root seed."""

    def measure_point(point: Point, seed: int) -> Rows:
        config: dict[str, Any] = {**compose_config([*point.overrides]), "seed": seed}
        return measure(build_job(config, overrides=point.overrides).job)

    return measure_point


def run_sweep(sweep: Sweep, path: Path, num_seeds: int, show: Callable[[str], None]) -> "pl.DataFrame":
    """Measure what a table lacks, and keep each measurement as soon as it is there.

    Parameters
    ----------
    sweep
        What is measured.
    path
        The table's CSV file; rows that it holds are not measured again.
    num_seeds
        Seeds 0 to num_seeds - 1 of each point.
    show
        Receives a line of progress after each point.

    Raises
    ------
    ValueError
        If the file has other labels.
    """
    keys = key_types(sweep)
    table = read_table(path, keys)
    done = set() if table is None else set(table.select(*keys).rows())
    lacking = [
        (point, seed)
        for point in sweep.points
        for seed in range(num_seeds)
        if (*point.labels.values(), seed) not in done
    ]
    measured = Parallel(1 if sweep.in_turn else -1, return_as="generator")(
        delayed(measure_row)(sweep.measure, point, seed) for point, seed in lacking
    )
    for number, ((point, seed), found) in enumerate(zip(lacking, measured, strict=True), start=1):
        rows = [found] if isinstance(found, Mapping) else found
        append_rows(path, [{**point.labels, SEED: seed, **row} for row in rows])
        if number == len(lacking) or point is not lacking[number][0]:
            labels = ", ".join(f"{name}={value}" for name, value in point.labels.items())
            show(f"{path.stem} {number}/{len(lacking)}: {labels}")
    return sorted_table(sweep, path)


def measure_row(measure: Callable[[Point, int], Rows], point: Point, seed: int) -> Rows:
    """Measure with Python's garbage collector set for runs."""
    spare_garbage_collector()
    return measure(point, seed)


def key_types(sweep: Sweep) -> "dict[str, pl.DataType]":
    """Return the types of the columns that tell rows apart."""
    import polars as pl

    labels = pl.DataFrame([{**point.labels, SEED: 0} for point in sweep.points], infer_schema_length=None)
    return dict(labels.schema)


def sorted_table(sweep: Sweep, path: Path) -> "pl.DataFrame":
    """Read a table and write it back in the order of points and seeds.

    Raises
    ------
    ValueError
        If there is no table.
    """
    import polars as pl

    table = read_table(path, key_types(sweep))
    if table is None:
        raise ValueError(f"{path}: there is nothing to draw: run the study first")
    labels = pl.DataFrame([dict(point.labels) for point in sweep.points], infer_schema_length=None)
    places = labels.with_row_index("place")
    table = places.join(table, on=labels.columns, maintain_order="left_right")
    table = table.sort("place", SEED, maintain_order=True).drop("place")
    write_table(path, table)
    return table


def run_study(
    study: Study,
    out: Path,
    *,
    argument: str | None = None,
    num_seeds: int | None = None,
    draw_only: bool = False,
    show: Callable[[str], None],
) -> None:
    """Measure what is missing and write the tables, the page and the figures.

    Parameters
    ----------
    study
        What to run.
    out
        Folder of its files.
    argument
        How ``study.py`` was given it, for the page; None: by its name.
    num_seeds
        Of each sweep of more than one seed; None: as the study says.
    draw_only
        Measure nothing: write page and figures from the tables that are there.
    show
        Receives lines of progress.
    """
    out.mkdir(parents=True, exist_ok=True)
    tables = {}
    for name, sweep in study.tables.items():
        path = out / f"{name}.csv"
        seeds = sweep.num_seeds if num_seeds is None or sweep.num_seeds == 1 else num_seeds
        tables[name] = sorted_table(sweep, path) if draw_only else run_sweep(sweep, path, seeds, show)
    for name, draw in study.figures.items():
        figure = draw(tables)
        write_file(out, f"{name}.png", png_bytes(figure))
        write_file(out, f"{name}.pdf", pdf_bytes(figure))
    counts = sorted({table[SEED].n_unique() for table in tables.values()})
    seeds_text = f"{counts[-1]} seed{'s' if counts[-1] > 1 else ''}"
    head = f"# {study.title}\n\n`python experiments/study.py {argument or study.name}`, {seeds_text}.\n\n"
    page = out / f"{study.name}.md"
    write_file(out, page.name, (head + study.report(tables)).encode())
    show(str(page))
