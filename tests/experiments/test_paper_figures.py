import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from experiments.analysis.expert_stage import (
    WorkerTimes,
    output_tokens_by_expert,
    slots_by_expert,
    tokens_by_agreement,
    worker_times,
)
from experiments.figures.agreement import agreement_rows, density, draw_agreement
from experiments.figures.data_parallel import data_parallel_rows, draw_data_parallel
from experiments.figures.lengths import draw_lengths, length_rows
from experiments.figures.skew import PoolSkew, draw_skew, slot_rows, worker_rows
from experiments.figures.throughput import draw_throughput
from mosaic.comparison.estimate import Estimate
from mosaic.core.errors import RunFolderError
from mosaic.core.workload import AGGREGATE
from mosaic.figures.style import (
    COLUMN_WIDTH_IN,
    PALETTE,
    PUBLISHED_EXPERTS,
    expert_colours,
    lay_out,
    pdf_bytes,
    png_bytes,
)
from mosaic.pipelines.final_answers import AnswerSource, FinalAnswer
from mosaic.report.tables import answers_parquet, calls_parquet, sessions_parquet
from tests.run_records import make_failed, make_key, make_record, make_session

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = {"hybrid": {"LlamaR1": [100, 200, 900], "Gemma": [50] * 9}, "instruct": {"Gemma": [60], "Qwen": [40, 80]}}
PUBLISHED = {"hybrid": {"LlamaR1": 410.0}}
TIMES = (
    WorkerTimes(load_s=(10.0, 20.0), generate_s=(90.0, 30.0), makespan_s=100.0),
    WorkerTimes(load_s=(10.0, 20.0), generate_s=(110.0, 20.0), makespan_s=120.0),
)
SKEW = {
    "hybrid": PoolSkew(slots={"LlamaR1": 10, "QwenR1": 30, "Gemma": 60}, times=TIMES),
    "instruct": PoolSkew(slots={"Gemma": 99, "Qwen": 1}, times=TIMES[:1]),
}
POLICIES = {"hybrid": {"round robin": TIMES, "data parallel": TIMES[:1]}, "instruct": {"round robin": TIMES[:1]}}
BUCKETS = {"3:0": [100.0, 200.0, 600.0], "2:1": [300.0, 500.0], "1:1:1": [4000.0]}


def make_curve(rates: dict[int, float]) -> dict[int, Estimate]:
    return {size: Estimate(rate, 0.9 * rate, 1.1 * rate, 4) for size, rate in rates.items()}


CURVES = {
    "hybrid": {"LlamaR1": make_curve({8: 100, 64: 300}), "Gemma": make_curve({8: 90, 64: 310})},
    "instruct": {"Gemma": make_curve({8: 90, 64: 400})},
}
FIGURES = {
    "lengths": lambda: draw_lengths(LENGTHS, PUBLISHED),
    "skew": lambda: draw_skew(SKEW),
    "data_parallel": lambda: draw_data_parallel(POLICIES),
    "throughput": lambda: draw_throughput(CURVES),
    "agreement": lambda: draw_agreement(BUCKETS, {"3:0": 310.0}),
}


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def bars(axes) -> list[tuple[float, float]]:
    return [(patch.get_x(), patch.get_width()) for patch in axes.patches if isinstance(patch, Rectangle)]


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_one_column_wide_and_equal_figures_are_equal_bytes(name):
    draw = FIGURES[name]
    figure = draw()
    assert figure.get_figwidth() == COLUMN_WIDTH_IN
    assert png_bytes(figure) == png_bytes(draw())
    assert pdf_bytes(figure) == pdf_bytes(figure) == pdf_bytes(draw())


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_leaves_the_figure(name):
    figure = FIGURES[name]()
    lay_out(figure)
    drawn = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert drawn.x0 >= 0
    assert drawn.y0 >= 0
    assert drawn.x1 <= width
    assert drawn.y1 <= height


@pytest.mark.parametrize("name", FIGURES)
def test_pdf_embeds_its_text_as_truetype(name):
    pdf = pdf_bytes(FIGURES[name]())
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    import matplotlib

    assert matplotlib.rcParams["pdf.fonttype"] == 3, "the process's settings stay as they were"


def test_pdf_is_the_same_in_another_process():
    code = (
        "from mosaic.figures.style import new_figure, pdf_bytes; from hashlib import sha256; f = new_figure(1.0);"
        "f.text(0.5, 0.5, 'tokens (s)'); print(sha256(pdf_bytes(f)).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1] != ""


def test_a_published_expert_has_one_colour_in_every_pool():
    pools = (PUBLISHED_EXPERTS[:6], PUBLISHED_EXPERTS[:2] + PUBLISHED_EXPERTS[6:10], PUBLISHED_EXPERTS[2:6])
    everywhere = dict(zip(PUBLISHED_EXPERTS, PALETTE, strict=True))
    for pool in pools:
        assert expert_colours(pool) == {name: everywhere[name] for name in pool}


def test_other_experts_never_take_the_colour_of_a_published_one_beside_them():
    names = ["Mine", "Gemma", *(f"expert-{i}" for i in range(20)), "LlamaR1"]
    colours = expert_colours(names)
    assert len(set(colours.values())) == len(names)
    assert (colours["LlamaR1"], colours["Gemma"], colours["Mine"]) == (PALETTE[0], PALETTE[2], PALETTE[1])


def test_lengths_have_a_panel_per_pool_and_their_means_written_and_marked():
    figure = draw_lengths(LENGTHS, PUBLISHED)
    hybrid, instruct = figure.axes
    assert [label.get_text() for label in hybrid.get_yticklabels()] == ["LlamaR1", "Gemma"]
    assert hybrid.get_xlim() == instruct.get_xlim()
    assert instruct.get_xlabel() == "output tokens of a call"
    assert {"middle half", "median", "5 to 95%", "longest", "mean"} <= set(texts(figure)), "all that is drawn is named"
    means = [tuple(line.get_xdata()) for line in hybrid.lines if line.get_marker() == "D"]
    published = [tuple(line.get_xdata()) for line in hybrid.lines if line.get_marker() == "o"]
    assert (means, published) == ([(400.0,), (50.0,)], [(410.0,)])
    assert {"400", "410", "60", "published mean"} <= set(texts(figure))
    assert "published mean" not in texts(draw_lengths(LENGTHS))


def test_length_rows_are_what_is_drawn():
    head, first, *_, last = length_rows(LENGTHS, PUBLISHED)
    row = dict(zip(head, first, strict=True))
    assert (row["pool"], row["expert"], row["num_calls"], row["mean_tokens"]) == ("hybrid", "LlamaR1", 3, 400.0)
    assert (row["p50_tokens"], row["p25_tokens"], row["max_tokens"]) == (200, 150.0, 900)
    assert row["published_mean_tokens"] == 410.0
    assert last[:4] == ("instruct", "Qwen", 2, 60.0)
    assert last[-1] is None
    with pytest.raises(ValueError, match=r"lengths: hybrid\.A must have at least one call"):
        length_rows({"hybrid": {"A": []}})


def test_skew_draws_shares_of_slots_and_of_the_makespan():
    figure = draw_skew(SKEW)
    slots, times, *_ = figure.axes
    assert len(figure.axes) == 4
    assert [width for _, width in bars(slots)] == pytest.approx([10, 30, 60])
    assert [to_hex(patch.get_facecolor()) for patch in slots.patches] == list(PALETTE[:3])
    # Worker 0 loads for 10/100 and 10/120 and generates for 90/100 and 110/120: it is never idle.
    load, generate = 100 * (0.1 + 1 / 12) / 2, 100 * (0.9 + 11 / 12) / 2
    assert bars(times)[:2] == [pytest.approx((0, load)), pytest.approx((load, generate))]
    assert sum(width for _, width in bars(times)[2:]) == pytest.approx(100)
    assert {
        "hybrid, max/min 6",
        "instruct, max/min 99",
        "60%",
        "1%",
        "share of slots (%)",
        "share of makespan (%)",
    } <= set(texts(figure))
    assert "idle 29.2%" in texts(figure), "two seeds have no interval worth showing"
    three = draw_skew({"hybrid": PoolSkew(slots={"Gemma": 6}, times=(*TIMES, TIMES[0]))})
    assert any(text.startswith("idle 27.8% [") for text in texts(three))
    assert "idle 25.0%" in texts(figure), "one seed has no interval"


def test_skew_rows_hold_shares_and_the_interval_of_the_idle_share():
    assert slot_rows(SKEW)[3] == ("hybrid", "Gemma", 60, 0.6, 6.0)
    rows = [dict(zip(worker_rows(SKEW)[0], row, strict=True)) for row in worker_rows(SKEW)[1:]]
    assert [row["worker"] for row in rows] == [0, 1, "all", 0, 1, "all"]
    assert rows[1]["idle_frac"] == pytest.approx(1 - (0.5 + 40 / 120) / 2)
    every = rows[2]
    assert every["idle_frac"] == pytest.approx((0.25 + 80 / 240) / 2)
    assert every["idle_low_frac"] < every["idle_frac"] < every["idle_high_frac"]
    assert every["load_frac"] + every["generate_frac"] + every["idle_frac"] == pytest.approx(1)
    assert rows[5]["idle_low_frac"] is None


def test_pool_skew_names_what_is_wrong():
    with pytest.raises(ValueError, match="pool skew: slots"):
        PoolSkew(slots={"A": 0}, times=TIMES)
    with pytest.raises(ValueError, match="pool skew: times"):
        PoolSkew(slots={"A": 1}, times=())
    one = WorkerTimes(load_s=(1.0,), generate_s=(1.0,), makespan_s=2.0)
    with pytest.raises(ValueError, match="of equally many workers"):
        PoolSkew(slots={"A": 1}, times=(one, TIMES[0]))


def test_data_parallel_bars_add_up_to_the_makespan():
    figure = draw_data_parallel(POLICIES)
    hybrid, instruct = figure.axes
    assert [label.get_text() for label in hybrid.get_yticklabels()] == ["round robin", "data parallel"]
    boxes = bars(hybrid)
    assert boxes[0] == pytest.approx((0, 15.0))
    assert boxes[1] == pytest.approx((15.0, 62.5))
    assert sum(boxes[2]) == pytest.approx(110.0)
    assert sum(boxes[5]) == pytest.approx(100.0)
    assert {"110 s, idle 30%", "100 s, idle 25%", "time per worker (s)"} <= set(texts(figure))
    assert len(hybrid.containers) > len(instruct.containers)
    assert not hybrid.collections, "two seeds have no interval worth showing"
    three = {"hybrid": {"round robin": (*TIMES, TIMES[1])}}
    low, high = (data_parallel_rows(three)[1][place] for place in (6, 7))
    (interval,) = [line for line in draw_data_parallel(three).axes[0].collections if line.get_segments()]
    assert interval.get_segments()[0][:, 0] == pytest.approx([low, high])


def test_data_parallel_rows_are_means_per_worker():
    head, first, second, _ = data_parallel_rows(POLICIES)
    assert head[2:6] == ("load_s_per_worker", "idle_s_per_worker", "generate_s_per_worker", "makespan_s")
    assert first[:6] == ("hybrid", "round robin", 15.0, 32.5, 62.5, 110.0)
    assert first[6:8] == pytest.approx((110 - 127.06, 110 + 127.06), rel=1e-3), "t of one degree of freedom"
    assert second[-3:] == (None, None, 1)
    with pytest.raises(ValueError, match=r"data parallel: p\.q must have at least one run"):
        data_parallel_rows({"p": {"q": ()}})


def test_throughput_draws_means_with_their_intervals():
    figure = draw_throughput(CURVES)
    hybrid, instruct = figure.axes
    llama, gemma = hybrid.lines[:2]
    assert list(llama.get_xdata()) == [8, 64]
    assert list(llama.get_ydata()) == [100, 300]
    assert (llama.get_color(), gemma.get_color()) == (PALETTE[0], PALETTE[2])
    assert instruct.lines[0].get_color() == PALETTE[2]
    assert (hybrid.get_ylabel(), instruct.get_xlabel()) == ("output tok/s", "shard size (calls of a session)")
    assert "95% interval of the mean over sessions" in texts(figure), "what the band is"


def test_names_of_close_curves_do_not_overlap():
    figure = draw_throughput(CURVES)
    figure.canvas.draw()
    names = [text for text in figure.axes[0].texts if text.get_text() in ("LlamaR1", "Gemma")]
    boxes = [Text.get_window_extent(name) for name in names]  # without the line to its curve
    assert len(boxes) == 2
    assert not boxes[0].overlaps(boxes[1])


def test_agreement_draws_a_violin_and_a_cumulative_share_per_bucket():
    figure = draw_agreement(BUCKETS, {"3:0": 310.0})
    violins, shares = figure.axes
    assert len(violins.collections) == len(shares.lines) == 3
    assert [label.get_text() for label in violins.get_xticklabels()] == [
        "3:0\n3\n300\n310",
        "2:1\n2\n400\n",
        "1:1:1\n1\n4,000\n",
    ]
    assert list(shares.lines[0].get_xdata()) == [100.0, 200.0, 600.0]
    assert list(shares.lines[0].get_ydata()) == pytest.approx([100 / 3, 200 / 3, 100])
    means = [line.get_ydata()[0] for line in violins.lines if line.get_marker() == "D"]
    assert means == [300.0, 400.0, 4000.0]
    assert {"\nquestions\nmean\npubl. mean", "questions below (%)", "published mean"} <= set(texts(figure))
    assert "\nquestions\nmean" in texts(draw_agreement(BUCKETS))
    assert "published mean" not in texts(draw_agreement(BUCKETS))


def test_agreement_without_questions_in_a_bucket_leaves_it_blank():
    figure = draw_agreement({"3:0": [10.0, 20.0], "2:1": []})
    assert len(figure.axes[0].collections) == 1
    assert agreement_rows({"3:0": [10.0, 20.0], "2:1": []})[2][:4] == ("2:1", 0, None, None)
    with pytest.raises(ValueError, match="not all empty"):
        draw_agreement({"3:0": []})


def test_agreement_rows_hold_means_and_quantiles():
    head, first, *_ = agreement_rows(BUCKETS, {"3:0": 310.0})
    row = dict(zip(head, first, strict=True))
    assert (row["num_questions"], row["mean_tokens"], row["published_mean_tokens"]) == (3, 300.0, 310.0)
    assert row["p50_tokens"] == 200.0


def test_density_peaks_where_the_values_are_and_stays_between_them():
    points, heights = density([1.0, 5.0, 5.0, 5.1, 9.0])
    assert (points[0], points[-1], heights.max()) == (1.0, 9.0, 1.0)
    assert points[np.argmax(heights)] == pytest.approx(5.0, abs=0.3)


def write_run(folder: Path) -> Path:
    calls = [
        make_record("q0", expert="B", output_tokens=10),
        make_record("q0", expert="A", output_tokens=30, key=make_key("q0", slot=1)),
        make_record("q1", expert="A", output_tokens=50),
        make_record("q2", expert="A", output_tokens=70),
        make_failed("q1", expert="B"),
        make_record("q1", expert="Z", output_tokens=999, key=make_key("q1", node=AGGREGATE)),
    ]
    sessions = [
        make_session(0, expert="A", load=(0.0, 10.0), end_ts=50.0),
        make_session(1, expert="B", workers=(1,), load=(0.0, 5.0), end_ts=20.0),
        make_session(2, expert="Z", workers=(0, 1), load=(50.0, 70.0), end_ts=100.0, node=AGGREGATE),
    ]
    votes = {"q0": ("a", "a", "a"), "q1": ("a", None, "a"), "q2": (None, None, "b"), "q3": ("x", "x", "x")}
    answers = [
        FinalAnswer(name, "a", AnswerSource.MAJORITY, None if name == "q3" else 0.5, given, None, None)
        for name, given in votes.items()
    ]
    (folder / "calls.parquet").write_bytes(calls_parquet(calls, {}))
    (folder / "sessions.parquet").write_bytes(sessions_parquet(sessions))
    (folder / "answers.parquet").write_bytes(answers_parquet(answers))
    (folder / "summary.json").write_text(json.dumps({"experts": ["A", "B", "C", "Z"], "num_workers": 2}))
    return folder


def test_run_folder_gives_the_expert_stage_in_the_pools_order(tmp_path):
    folder = write_run(tmp_path)
    assert list(output_tokens_by_expert(folder).items()) == [("A", [30, 50, 70]), ("B", [10])]
    assert slots_by_expert(folder) == {"A": 3, "B": 1}
    times = worker_times(folder)
    assert times == WorkerTimes(load_s=(10.0, 5.0), generate_s=(40.0, 15.0), makespan_s=50.0)
    assert (times.idle_s, times.idle_frac, times.load_frac) == ((0.0, 30.0), 0.3, 0.15)


def test_run_folder_gives_question_means_by_agreement(tmp_path):
    buckets = tokens_by_agreement(write_run(tmp_path))
    assert buckets == {"3:0": [20.0], "2:1": [50.0], "1:1:1": [70.0]}, "free text (q3) is left out"


def test_broken_run_folder_is_named(tmp_path):
    write_run(tmp_path)
    (tmp_path / "sessions.parquet").write_bytes(sessions_parquet([make_session(node=AGGREGATE)]))
    with pytest.raises(RunFolderError, match="no session of the expert stage"):
        worker_times(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(RunFolderError, match="'experts' missing"):
        slots_by_expert(tmp_path)
    (tmp_path / "calls.parquet").unlink()
    with pytest.raises(RunFolderError, match=r"calls\.parquet: cannot be read"):
        tokens_by_agreement(tmp_path)
    with pytest.raises(ValueError, match="worker times: generate_s"):
        WorkerTimes(load_s=(1.0,), generate_s=(), makespan_s=1.0)
