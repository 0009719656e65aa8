"""Plain vLLM in a process of its own: loads an expert once, then generates a batch whenever a line arrives.

    python -m tests.benchmarks.raw_vllm JOBS.pickle CORE

Each answer is a line of JSON: seconds of the load, or of the batch and its tokens.
"""

import gc
import json
import os
import pickle
import sys
import time
from pathlib import Path


def main(path: Path, core: int) -> None:
    os.sched_setaffinity(0, {core})
    spec, jobs = pickle.loads(path.read_bytes())
    from mosaic.backends.vllm_engine import engine_arguments, prepare

    prepare(spec.settings)
    import torch
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    torch.set_num_threads(1)
    gc.freeze()
    start = time.monotonic()
    llm = LLM(**engine_arguments(spec))
    say(load_s=time.monotonic() - start)
    prompts = [TokensPrompt(prompt_token_ids=list(job.prompt)) for job in jobs]
    parameters = [
        SamplingParams(
            temperature=job.temperature, seed=job.seed, max_tokens=job.output_tokens, min_tokens=job.output_tokens,
            ignore_eos=True, detokenize=False,
        )
        for job in jobs
    ]  # fmt: skip
    for _ in sys.stdin:
        start = time.monotonic()
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        serve_s = time.monotonic() - start
        say(serve_s=serve_s, output_tokens=sum(len(output.outputs[0].token_ids) for output in outputs))


def say(**values: float) -> None:
    print(f"RAW {json.dumps(values)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
