"""Runs a configuration with a controller that steals, in a process that tests can kill; answers go to answers.json.

python -m tests.engines.stealing_run FOLDER OVERRIDES
"""

import json
import sys
from collections import Counter
from pathlib import Path

import mosaic
from mosaic.commands.run import JOURNAL
from mosaic.config.compose import compose_config
from mosaic.config.job import build_job
from mosaic.core.commands import Close, Move, Open
from mosaic.core.events import Idle
from mosaic.core.plan import Session
from tests.engines.fake_run import fake_hosts


class Stealing:
    """Gives a worker that is idle half of the calls of the session that has most of them."""

    reacts = True

    def __init__(self) -> None:
        self.num_stolen = 0

    def on(self, event, view):
        if not isinstance(event, Idle) or event.worker in view.lost:
            return ()
        waiting = Counter(view.place[key] for key in view.running)
        if not waiting or waiting.most_common(1)[0][1] < 4:
            return ()
        source = view.opened[waiting.most_common(1)[0][0]]
        stolen = [key for key in view.running if view.place[key] == source.id][::2]
        number = view.next_session()
        self.num_stolen += len(stolen)
        session = Session(id=number, expert=source.expert, node=source.node, workers=(event.worker,))
        return [Open(session), *(Move(key, number) for key in stolen), Close(number)]


def main(folder: Path, overrides: list[str]) -> None:
    with fake_hosts:
        job = build_job(compose_config(overrides), folder / JOURNAL).job
        stealing = Stealing()
        with job.site.open():
            outcome = mosaic.run(job, controllers=[stealing])
    answers = [[answer.question, answer.answer, answer.source.value] for answer in outcome.answers]
    calls = [[*record.key, record.status.value, record.answer, record.output_tokens] for record in outcome.result.calls]
    said = {"answers": answers, "calls": sorted(calls), "num_stolen": stealing.num_stolen}
    (folder / "answers.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
