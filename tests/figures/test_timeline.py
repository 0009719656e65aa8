from io import BytesIO

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from mosaic.core.results import LostWorker, Resumption, RunResult
from mosaic.core.workload import AGGREGATE, PROPOSE
from mosaic.figures.style import COLUMN_WIDTH_IN, INK, PALETTE, expert_colours, text_colour
from mosaic.figures.timeline import BAR, ROW_IN, apart, draw_timeline
from tests.run_records import make_disturbed_run, make_session, make_small_run

DPI = 250
"""Of the style file."""


def pixels(png: bytes) -> np.ndarray:
    return imread(BytesIO(png), format="png")[:, :, :3]


def share_of(png: bytes, colour: str) -> float:
    return float(np.all(np.abs(pixels(png) - to_rgb(colour)) < 0.01, axis=2).mean())


def draw(sessions, *, experts=("A", "B", "C"), predicted_makespan_s=None, num_workers=2, **disturbed) -> bytes:
    result = RunResult(calls=(), sessions=tuple(sessions), num_workers=num_workers, **disturbed)
    return draw_timeline(result, experts=experts, predicted_makespan_s=predicted_makespan_s)


def test_timeline_is_one_column_wide_and_equal_for_equal_runs():
    png = draw(make_small_run().sessions, predicted_makespan_s=72.0)
    assert pixels(png).shape[1] == round(COLUMN_WIDTH_IN * DPI)
    assert png == draw(make_small_run().sessions, predicted_makespan_s=72.0)


def test_bars_take_the_experts_colours_in_proportion_to_their_time():
    png = draw(make_small_run().sessions)
    shares = {name: share_of(png, colour) for name, colour in expert_colours(["A", "B", "C"]).items()}
    assert shares["A"] / shares["C"] == pytest.approx(40 / 30, rel=0.15)
    assert shares["A"] / shares["B"] == pytest.approx(40 / 25, rel=0.15)


def test_prediction_is_marked_where_it_is_known():
    sessions = make_small_run().sessions
    assert draw(sessions) != draw(sessions, predicted_makespan_s=72.0)
    assert draw(sessions, predicted_makespan_s=40.0) != draw(sessions, predicted_makespan_s=72.0)


def test_bars_too_short_for_their_name_are_named_in_the_legend():
    tiny = (make_session(0, expert="A", end_ts=1000.0), make_session(1, expert="B", workers=(1,), end_ts=15.0))
    named = (make_session(0, expert="A", end_ts=1000.0), make_session(1, expert="B", workers=(1,), end_ts=900.0))
    swatch = 1.6 * 0.8 * (6 / 72) ** 2  # handle length and height in type sizes
    page = np.prod(pixels(draw(tiny)).shape[:2]) / DPI**2
    assert share_of(draw(tiny), PALETTE[1]) > 0.5 * swatch / page
    assert share_of(draw(named), PALETTE[1]) > 10 * share_of(draw(tiny), PALETTE[1])


def test_both_stages_are_on_one_axis_and_a_gang_takes_all_its_lanes():
    sessions = (
        make_session(0, load=(0.0, 0.0), end_ts=100.0),
        make_session(1, expert="Z", workers=(0, 1), load=(100.0, 100.0), end_ts=200.0, node=AGGREGATE),
    )
    png = draw(sessions, experts=("A", "Z"))
    shares = {name: share_of(png, colour) for name, colour in expert_colours(["A", "Z"]).items()}
    assert shares["Z"] / shares["A"] == pytest.approx((1 + BAR) / BAR, rel=0.2)


def test_an_aggregator_is_another_figure_than_an_expert_of_the_same_times():
    first = make_small_run().sessions
    gangs = [
        make_session(3, expert="Z", workers=(0, 1), load=(80.0, 90.0), end_ts=200.0, node=node)
        for node in (PROPOSE, AGGREGATE)
    ]
    proposing, aggregating = (draw((*first, gang), experts=("A", "B", "C", "Z")) for gang in gangs)
    assert proposing != aggregating, "the end of the expert stage is marked"


def test_a_gang_of_workers_apart_leaves_the_lanes_between_blank():
    def filled(workers: tuple[int, ...]) -> float:
        session = make_session(0, workers=workers, load=(0.0, 0.0), end_ts=100.0)
        return share_of(draw((session,), num_workers=3, experts=("A",)), PALETTE[0])

    assert filled((0, 2)) == pytest.approx(2 * filled((1,)), rel=0.1)
    assert filled((0, 1, 2)) > 3.2 * filled((1,)), "neighbours are one box, without blank between"


@pytest.mark.parametrize("num_workers", [1, 8, 64])
def test_any_number_of_lanes_can_be_drawn(num_workers):
    sessions = [make_session(i, expert=f"e{i % 20}", workers=(i,), end_ts=20.0 + i) for i in range(num_workers)]
    height = pixels(draw(sessions, num_workers=num_workers)).shape[0] / DPI
    assert height < 9.0


def test_what_disturbed_a_run_is_marked():
    run = make_disturbed_run()
    plain, both = draw(run.sessions), draw(run.sessions, resumptions=run.resumptions, lost_workers=run.lost_workers)
    resumed, lost = draw(run.sessions, resumptions=run.resumptions), draw(run.sessions, lost_workers=run.lost_workers)
    assert len({plain, both, resumed, lost}) == 4
    assert resumed != draw(run.sessions, resumptions=[Resumption(30.0, None)])
    assert lost != draw(run.sessions, lost_workers=[LostWorker(45.0, 0, "unplugged")]), "the cross is in its lane"
    assert draw(run.sessions, lost_workers=[LostWorker(400.0, 0, "late")]) != lost, "and inside the axis"


def test_the_page_has_room_for_every_row_of_the_legend():
    """A long entry leaves two columns: a third entry takes another row."""
    tiny = make_session(3, expert="Z", workers=(0, 1), load=(80.0, 80.0), end_ts=80.1, node=AGGREGATE)
    sessions = (*make_small_run().sessions, tiny)
    two_rows, three_rows = draw(sessions), draw(sessions, lost_workers=2 * [LostWorker(45.0, 1, "unplugged")])
    assert share_of(two_rows, INK) > 0
    assert pixels(three_rows).shape[0] == pixels(two_rows).shape[0]
    more = draw(sessions, lost_workers=[LostWorker(45.0, 1, "unplugged")], resumptions=[Resumption(20.0, 60.0)])
    assert pixels(more).shape[0] - pixels(two_rows).shape[0] == pytest.approx(ROW_IN * DPI, abs=1)


def test_run_without_sessions_is_an_empty_frame():
    assert pixels(draw(())).shape[1] == round(COLUMN_WIDTH_IN * DPI)


def test_colour_depends_on_the_place_in_the_pool_alone():
    pool = [f"expert-{i}" for i in range(40)]
    colours = expert_colours(pool)
    assert len(set(colours.values())) == 40
    assert expert_colours(pool[:3]) == {name: colours[name] for name in pool[:3]}
    assert all(len(colour) == 7 for colour in colours.values())


def test_text_is_black_on_light_and_white_on_dark():
    assert (text_colour("#ffffff"), text_colour("#000000"), text_colour("#0072b2")) == ("#000000", "#ffffff", "#ffffff")


def test_loads_are_outlined_together_where_no_two_share_a_lane():
    sessions = [make_session(number, workers=(number % 2,)) for number in range(4)]
    gang = make_session(4, expert="Z", workers=(0, 1))
    bars = [(session, (session.workers[0], session.workers[-1])) for session in [*sessions, gang]]
    boxes = [((float(number), 0.0),) for number in range(5)]
    assert apart(boxes, bars) == [boxes[:2], boxes[2:4], boxes[4:]]
