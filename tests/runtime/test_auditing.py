import mosaic
from mosaic.runtime.auditing import Unskipped, answer_unskipped
from tests.answered_questions import make_moa
from tests.runtime.jobs import make_job, make_questions


def test_a_skipped_question_that_the_aggregator_cannot_read_counts_as_one_that_nobody_knows() -> None:
    job = make_job(make_moa(), questions=make_questions(prompt_tokens=7900))
    done = {record.key: record for record in mosaic.run(job).result.calls}
    assert answer_unskipped(job, ["agreed"], done) == {"agreed": Unskipped("A", has_failed=True)}
