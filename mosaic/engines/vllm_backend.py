"""Runs a plan on real engines: vLLM on GPUs, or on CPU cores where there are none."""

import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mosaic.core.checks import require_count, require_unique
from mosaic.core.cluster import Cluster
from mosaic.core.plan import Plan
from mosaic.core.realization import Outcomes
from mosaic.core.results import CallStatus, Listener, RunResult
from mosaic.core.workload import Call, CallKey, Expert, ExpertName, Question
from mosaic.engines.engine import EngineSettings
from mosaic.engines.host_process import HostProcess
from mosaic.engines.journalled_run import Standing, run_with_journal, tell_again, teller
from mosaic.engines.live_sessions import LiveProcess, LiveSession, Patience
from mosaic.engines.orders import Job
from mosaic.engines.plan_calls import SessionCalls, calls_of_sessions
from mosaic.engines.plan_run import PlanRun
from mosaic.engines.run_records import Answered, read_response
from mosaic.engines.vllm_jobs import JobMaker, Loadable, Prompts
from mosaic.engines.worker_processes import Site
from mosaic.runtime.journal_records import EndedCall
from mosaic.runtime.worker_state import WorkerState


class VllmBackend:
    """Executes plans on vLLM, with a journal that survives whatever happens to the machine.

    Results are on the disk before anybody hears of them. A plan that was interrupted is started again by executing it
    again with the same journal: calls that are there are not run again, and the run's clock goes on where it
    stopped. The journal may hold several plans over the same calls (what a lost worker left is planned anew).

    Parameters
    ----------
    experts, cluster
        Who answers, and the workers.
    journal
        A folder for one stage of one run; it is made if need be, and holds the workers' logs too.
    prompts
        What experts read. None (replay only): random tokens, as many as each call has.
    questions
        By id; answers to those in it are read from the responses.
    outcomes
        Replay: each call writes exactly as many tokens as here, and its answer is the one given here.
        None: live, the model decides.
    root_seed
        Responses follow from it and the calls' keys.
    settings
        How engines run.
    checkpoints
        Folder of the checkpoints that experts do not name by path.
    host
        Kept by the caller for several backends, so that vLLM is imported once; None: one of its own, until ``close``.
    patience
        Time limits and retries.
    on_state
        Told what workers do, about twice a second each.
    """

    name = "vllm"

    def __init__(
        self,
        *,
        experts: Sequence[Expert],
        cluster: Cluster,
        journal: Path,
        prompts: Prompts | None = None,
        questions: Mapping[str, Question] | None = None,
        outcomes: Outcomes | None = None,
        root_seed: int = 0,
        settings: EngineSettings | None = None,
        checkpoints: Path | None = None,
        host: HostProcess | None = None,
        patience: Patience | None = None,
        on_state: Callable[[WorkerState], None] | None = None,
    ) -> None:
        require_unique((expert.name for expert in experts), "vllm backend: expert name")
        require_count(root_seed, "vllm backend: root_seed")
        if prompts is None and outcomes is None:
            raise ValueError("vllm backend: prompts must be given unless outcomes are replayed, got None")
        self._experts = {expert.name: expert for expert in experts}
        self._cluster = cluster
        self._journal = Path(journal)
        self._questions = questions or {}
        settings = EngineSettings() if settings is None else settings
        self._maker = JobMaker(
            settings=settings, root_seed=root_seed, prompts=prompts, outcomes=outcomes, checkpoints=checkpoints
        )
        self._host = HostProcess(settings) if host is None else host
        if host is None:
            self.close = weakref.finalize(self, self._host.close)
        self._patience = patience or Patience()
        self._on_state = on_state
        self._ended: dict[CallKey, EndedCall] = {}
        self._calls: dict[CallKey, Call] = {}
        self._context_tokens: dict[ExpertName, int] = {}
        self.dead_workers: dict[int, str] = {}
        """Workers that the last run gave up, with the cause."""

    def execute(self, plan: Plan, calls: Sequence[Call], listener: Listener | None = None) -> RunResult:
        """Run what is left of a plan's sessions.

        The result lacks calls whose workers are gone for good (``dead_workers``, ``calls_left``). A listener hears
        finishes in the order in which they reach the disk: per session in order of time.

        Raises
        ------
        BackendError
            If the plan cannot be run over the calls, a checkpoint does not pass its checks, the host or the journal
            fails. What has finished is kept.
        KeyboardInterrupt
            On Ctrl-C, when all processes are gone; it says what is kept. To go on from there, execute the
            same plan and calls with the same journal.
        """
        work = calls_of_sessions(plan, calls, self._experts, self._cluster)
        loadables = self._loadables(work)
        jobs = {call.key: self._maker.job(call, loadables[call.expert]) for call in calls}
        self._context_tokens |= {name: loadable.spec.context_tokens for name, loadable in loadables.items()}
        self._calls |= {call.key: call for call in calls}
        result, entries = run_with_journal(
            self._journal,
            plan,
            {key: job.fingerprint for key, job in jobs.items()},
            lambda standing: self._run(plan, standing, _live_sessions(work, jobs, standing, loadables), listener),
            self._read_answer,
        )
        self._ended |= entries
        return result

    def responses(self) -> dict[CallKey, EndedCall]:
        """Return how each call of the runs so far ended: text, token ids, error."""
        return dict(self._ended)

    def _run(self, plan: Plan, standing: Standing, lives: Sequence[LiveSession], listener: Listener | None) -> None:
        start_ts = standing.before.last_ts
        if any(live.jobs for live in lives):
            self._host.start(self._journal / "host.log")
        site = Site(
            host=self._host,
            journal=self._journal,
            lock=standing.lock,
            zero_ts=time.monotonic() - start_ts,
            cores=cores_of_workers(self._cluster.num_workers),
            gpus=gpus_of_workers(self._cluster.num_workers),
            patience=self._patience,
        )
        tell = teller(plan, standing, listener, self._read_answer)
        run = PlanRun(
            site,
            standing.plan,
            lives,
            num_workers=plan.num_workers,
            start_ts=start_ts,
            on_finish=tell,
            on_state=self._tell_state,
        )
        tell_again(standing.done, tell, run.cancel)
        try:
            run.run()
        finally:
            self.dead_workers = run.dead_workers

    def _loadables(self, work: Sequence[SessionCalls]) -> dict[ExpertName, Loadable]:
        """Check the experts of a plan, each once."""
        found: dict[ExpertName, Loadable] = {}
        cores = cores_of_workers(self._cluster.num_workers)
        for session, expert, _ in work:
            if expert.name not in found:
                num_threads = len({core for worker in session.workers for core in cores[worker]})
                gpu = self._cluster.workers[session.workers[0]].gpu
                found[expert.name] = self._maker.loadable(expert, gpu, num_threads)
        return found

    def _read_answer(self, entry: EndedCall) -> Answered:
        """Read what a response says; in replay its outcome knows, unless the expert's limit cut it off."""
        if self._maker.outcomes is not None and entry.status is CallStatus.FINISHED:
            call = self._calls[entry.key]
            outcome = self._maker.outcomes(call)
            expert, context_tokens = self._experts[entry.expert], self._context_tokens[entry.expert]
            limit = min(expert.max_output_tokens, context_tokens - entry.prompt_tokens)
            if outcome.output_tokens < limit:
                return Answered(outcome.answer, outcome.visible_tokens)
            return Answered(None, None if outcome.visible_tokens is None else 0)
        return read_response(entry, self._questions)

    def _tell_state(self, process: LiveProcess) -> None:
        if self._on_state is None:
            return
        is_lost = process.link is None and process.live is not None
        said, live = process.progress, None if is_lost else process.live
        current = said if said is not None and live is not None and said.session == live.session.id else None
        self._on_state(
            WorkerState(
                workers=process.workers,
                expert=process.spec.expert,
                phase=process.phase,
                session=None if live is None else live.session.id,
                num_calls=0 if live is None else len(live.session.shard),
                num_ended=0 if current is None else current.num_ended,
                output_tokens=0 if current is None else current.output_tokens,
                cause=process.cause() if is_lost else None,
            )
        )


def cores_of_workers(num_workers: int) -> tuple[tuple[int, ...], ...]:
    """Deal the cores that this process may use out to the workers; where there are fewer, workers share."""
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // num_workers)
    return tuple(
        tuple(sorted(cores[(worker * share + i) % len(cores)] for i in range(share))) for worker in range(num_workers)
    )


def gpus_of_workers(num_workers: int) -> tuple[str, ...]:
    """Name the GPU of each worker, as CUDA_VISIBLE_DEVICES does; those that it lists already come first."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(visible[worker] if worker < len(visible) else str(worker) for worker in range(num_workers))


def _live_sessions(
    work: Sequence[SessionCalls],
    jobs: Mapping[CallKey, Job],
    standing: Standing,
    loadables: Mapping[ExpertName, Loadable],
) -> list[LiveSession]:
    """Make a plan's sessions ready to run with the calls that are left."""
    return [
        LiveSession(
            session=session,
            spec=loadables[expert.name].spec,
            jobs={call.key: jobs[call.key] for call in calls if call.key not in standing.done},
            attempt=standing.num_attempts(session.id),
        )
        for session, expert, calls in work
    ]
