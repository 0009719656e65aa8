import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from mosaic.figures.style import PALETTE, PUBLISHED_EXPERTS, expert_colours, new_figure, pdf_bytes, png_bytes

ROOT = Path(__file__).resolve().parents[2]


def make_figure():
    figure = new_figure(1.0)
    figure.subplots().set_xlabel("tokens (s)")
    return figure


def test_equal_figures_are_equal_bytes():
    figure = make_figure()
    assert png_bytes(figure) == png_bytes(make_figure())
    assert pdf_bytes(figure) == pdf_bytes(figure) == pdf_bytes(make_figure())


def test_pdf_embeds_its_text_as_truetype():
    pdf = pdf_bytes(make_figure())
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    assert matplotlib.rcParams["pdf.fonttype"] == 3, "the process's settings stay as they were"


@pytest.mark.slow
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
