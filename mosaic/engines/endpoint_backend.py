"""Runs a plan on OpenAI-compatible servers that are already running: a worker is a server with its expert loaded."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mosaic.core.checks import require, require_count, require_unique
from mosaic.core.cluster import Cluster
from mosaic.core.errors import BackendError
from mosaic.core.plan import Plan
from mosaic.core.results import Listener, RunResult
from mosaic.core.workload import Call, CallKey, Expert, ExpertName, Question
from mosaic.engines.endpoint import Endpoint, EndpointPatience
from mosaic.engines.endpoint_line import Line, Refused
from mosaic.engines.endpoint_run import EndpointRun, ServedSession
from mosaic.engines.journalled_run import Standing, run_with_journal, tell_again, teller
from mosaic.engines.live_sessions import Stage
from mosaic.engines.orders import Job, ServeOrder
from mosaic.engines.plan_calls import SessionCalls, calls_of_sessions
from mosaic.engines.run_records import Answered, read_response
from mosaic.engines.vllm_jobs import Prompts, response_seed, stamped
from mosaic.runtime.journal_records import EndedCall
from mosaic.runtime.worker_state import WorkerState

NO_LIST = (404, 405, 501)
"""What servers say that do not list their models."""


class EndpointBackend:
    """Executes plans on servers, with the executor's journal, records and way to go on after an interruption.

    Calls get the seeds, temperatures and limits that the executor gives them, live only: servers do not write to
    length. No response is streamed, so records have no first token; a call is admitted when its request is sent,
    which includes its wait in the server's queue, and its attempt counts the requests that failed. What a
    cancelled call had written is not known either.

    Parameters
    ----------
    experts, cluster
        Who answers, and the workers.
    journal
        A folder for one stage of one run; it is made if need be.
    endpoints
        The server of each worker, in order. Servers of one expert are asked in one way.
    prompts
        What experts read: texts, which the server's chat template wraps, or token ids.
    questions
        By id; answers to those in it are read from the responses.
    root_seed
        Responses follow from it and the calls' keys, as far as the server repeats itself.
    max_in_flight
        Most requests that a worker's server has in its hands.
    patience
        Time limits and retries.
    on_state
        Told what workers do, about twice a second each.
    """

    name = "endpoint"

    def __init__(
        self,
        *,
        experts: Sequence[Expert],
        cluster: Cluster,
        journal: Path,
        endpoints: Sequence[Endpoint],
        prompts: Prompts,
        questions: Mapping[str, Question] | None = None,
        root_seed: int = 0,
        max_in_flight: int = 64,
        patience: EndpointPatience | None = None,
        on_state: Callable[[WorkerState], None] | None = None,
    ) -> None:
        require_unique((expert.name for expert in experts), "endpoint backend: expert name")
        require_count(root_seed, "endpoint backend: root_seed")
        require_count(max_in_flight, "endpoint backend: max_in_flight", at_least=1)
        rule = f"one for each of the {cluster.num_workers} workers"
        require(len(endpoints) == cluster.num_workers, "endpoint backend: endpoints", rule, len(endpoints))
        self._experts = {expert.name: expert for expert in experts}
        self._endpoint_of = _endpoint_by_expert(endpoints, self._experts)
        self._cluster = cluster
        self._journal = Path(journal)
        self._endpoints = tuple(endpoints)
        self._prompts = prompts
        self._questions = questions or {}
        self._root_seed = root_seed
        self._max_in_flight = max_in_flight
        self._patience = patience or EndpointPatience()
        self._on_state = on_state
        self._ended: dict[CallKey, EndedCall] = {}
        self.dead_workers: dict[int, str] = {}
        """Workers whose servers went away in the last run, with the cause."""

    def execute(self, plan: Plan, calls: Sequence[Call], listener: Listener | None = None) -> RunResult:
        """Run what is left of a plan's sessions.

        The result lacks calls whose servers went away (``dead_workers``, ``calls_left``). A listener hears
        finishes in the order in which they reach the disk: per session in order of time.

        Raises
        ------
        BackendError
            If the plan cannot be run over the calls, a session's worker serves another expert, a server cannot be
            reached or does not know its model, or the journal fails. What has finished is kept.
        KeyboardInterrupt
            On Ctrl-C, when all requests are broken off; it says what is kept. To go on from there, execute the
            same plan and calls with the same journal.
        """
        work = calls_of_sessions(plan, calls, self._experts, self._cluster)
        for session, expert, _ in work:
            self._check_place(session.id, expert, session.workers)
        jobs = {call.key: self._job(call) for call in calls}
        result, entries = run_with_journal(
            self._journal,
            plan,
            {key: job.fingerprint for key, job in jobs.items()},
            lambda standing: self._run(plan, standing, self._served_sessions(work, jobs, standing), listener),
            self._read_answer,
        )
        self._ended |= entries
        return result

    def responses(self) -> dict[CallKey, EndedCall]:
        """Return how each call of the runs so far ended: text, token ids where the server gives them, error."""
        return dict(self._ended)

    def _run(self, plan: Plan, standing: Standing, lives: Sequence[ServedSession], listener: Listener | None) -> None:
        self.dead_workers = {}
        for worker in sorted({live.session.workers[0] for live in lives if live.jobs}):
            check_server(self._endpoints[worker], self._patience)
        tell = teller(plan, standing, listener, self._read_answer)
        run = EndpointRun(
            lives,
            journal=self._journal,
            patience=self._patience,
            max_in_flight=self._max_in_flight,
            num_workers=plan.num_workers,
            start_ts=standing.before.last_ts,
            on_finish=tell,
            on_state=self._tell_state,
        )
        self.dead_workers = run.dead_workers
        run.run(lambda: tell_again(standing.done, tell, run.cancel))

    def _check_place(self, session: int, expert: Expert, workers: Sequence[int]) -> None:
        label = f"plan session {session} of {expert.name!r}"
        if len(workers) > 1:
            raise BackendError(
                f"{label}: workers must be one, got {tuple(workers)}: a server is one worker, whatever GPUs it spans; "
                "set the expert's tp_degree to 1"
            )
        endpoint = self._endpoints[workers[0]]
        if endpoint.expert != expert.name:
            raise BackendError(
                f"{label}: worker {workers[0]} must serve it, but {endpoint.base_url} serves {endpoint.expert!r} and a "
                "server keeps its expert; plan with workers for it only"
            )

    def _job(self, call: Call) -> Job:
        expert, endpoint = self._experts[call.expert], self._endpoint_of[call.expert]
        job = Job(
            key=call.key,
            fingerprint="",
            prompt=self._prompts(call),
            prompt_tokens=call.prompt_tokens,
            seed=response_seed(self._root_seed, call.key),
            temperature=expert.temperature,
            max_output_tokens=expert.max_output_tokens,
            output_tokens=None,
            ready_s=call.ready_s,
        )
        return stamped(job, self.name, expert.checkpoint, endpoint.model, endpoint.api, endpoint.is_vllm)

    def _served_sessions(
        self, work: Sequence[SessionCalls], jobs: Mapping[CallKey, Job], standing: Standing
    ) -> list[ServedSession]:
        """Make a plan's sessions ready to run with the calls that are left."""
        return [
            ServedSession(
                session=session,
                endpoint=self._endpoints[session.workers[0]],
                order=ServeOrder(
                    plan=standing.plan,
                    session=session.id,
                    attempt=standing.num_attempts(session.id),
                    node=session.node,
                    expert=expert.name,
                    workers=session.workers,
                    load_start_ts=0.0,
                    is_resident=True,
                    one_at_a_time=False,
                    jobs=tuple(jobs[call.key] for call in calls if call.key not in standing.done),
                ),
            )
            for session, expert, calls in work
        ]

    def _read_answer(self, entry: EndedCall) -> Answered:
        return read_response(entry, self._questions)

    def _tell_state(self, live: ServedSession) -> None:
        if self._on_state is not None:
            self._on_state(
                WorkerState(
                    workers=live.session.workers,
                    expert=live.session.expert,
                    phase="serving" if live.stage is Stage.RUNNING else "idle",
                    session=live.session.id,
                    num_calls=len(live.session.shard),
                    num_ended=len(live.order.jobs) - len(live.jobs),
                    output_tokens=live.output_tokens,
                    cause=live.cause,
                )
            )


def check_server(endpoint: Endpoint, patience: EndpointPatience) -> None:
    """Check that a server is there and knows the model that it will be asked for.

    Raises
    ------
    BackendError
        If not; it names the server's URL. One that does not list its models passes.
    """
    try:
        listed = Line(endpoint, patience).ask("models")
    except Refused as error:
        if error.status in NO_LIST:
            return
        raise BackendError(str(error)) from error
    models = listed.get("data") if isinstance(listed, dict) else None
    names = [model.get("id") for model in models or () if isinstance(model, dict)]
    if names and endpoint.model not in names:
        raise BackendError(
            f"{endpoint.expert} at {endpoint.base_url}: model must be one that it serves, {names}, "
            f"got {endpoint.model!r}"
        )


def _endpoint_by_expert(
    endpoints: Sequence[Endpoint], experts: Mapping[ExpertName, Expert]
) -> dict[ExpertName, Endpoint]:
    """Give each expert one of its servers: which of them answers must not decide the response."""
    found: dict[ExpertName, Endpoint] = {}
    for endpoint in endpoints:
        require(endpoint.expert in experts, "endpoint.expert", f"one of {sorted(experts)}", endpoint.expert)
        first = found.setdefault(endpoint.expert, endpoint)
        ways = [(e.model, str(e.api), e.is_vllm, e.opens_thinking) for e in (first, endpoint)]
        require(ways[0] == ways[1], f"endpoints of {endpoint.expert!r}", f"asked alike, as {ways[0]}", ways[1])
    return found
