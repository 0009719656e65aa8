"""Plain vLLM: whenever a line arrives a fresh process loads an expert and generates one batch.

    python -m tests.benchmarks.raw_vllm JOBS.pickle CORE

Answers with a line of JSON: seconds of the load and of the batch, and its tokens. vLLM is imported once, as the
executor does, so that both pay alike for what an engine sets up when it is first used.
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
    from mosaic.engines.vllm_engine import engine_arguments, prepare

    prepare(spec.settings.options)
    import torch
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    gc.freeze()
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            start = time.monotonic()
            llm = LLM(**engine_arguments(spec))
            load_s = time.monotonic() - start
            prompts = [TokensPrompt(prompt_token_ids=list(job.prompt)) for job in jobs]
            parameters = [
                SamplingParams(
                    temperature=job.temperature, seed=job.seed, max_tokens=job.output_tokens,
                    min_tokens=job.output_tokens, ignore_eos=True, detokenize=False,
                )
                for job in jobs
            ]  # fmt: skip
            start = time.monotonic()
            outputs = llm.generate(prompts, parameters, use_tqdm=False)
            serve_s = time.monotonic() - start
            tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
            say(load_s=load_s, serve_s=serve_s, output_tokens=tokens)
            os._exit(0)
        os.waitpid(child, 0)


def say(**values: float) -> None:
    print(f"RAW {json.dumps(values)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
