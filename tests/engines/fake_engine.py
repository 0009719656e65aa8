"""An engine without a model: quick, and broken in all the ways that prompts ask for.

A prompt is a list of words. ``die``, ``hang``, ``raise`` and ``lose`` (the device) happen at the step that would
finish the request, ``slow`` makes each of its steps take 10 ms more; with ``once`` they happen the first time only.
What a checkpoint's file ``behave`` says happens when the expert is loaded; a number in its file ``voice`` changes the
answers. A prompt with ``narrow`` takes a token a character, as its response does, and must fit the context.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from mosaic.engines.engine import Output

STEP_S = 0.0005
LONG_TOKENS, LONG_STEP_TOKENS = 400, 40
"""Of a response to a prompt with the word ``long``, each a word of its text; and so many at once."""
HOLD_S = 60.0
"""So long at most the last calls wait for a file ``hold`` beside the weights to go."""


def prepare(settings) -> None:
    """Import nothing."""


def is_device_lost(error: Exception) -> bool:
    return "device" in str(error)


def open_engine(spec):
    behave = spec.settings.checkpoint / "behave"
    if behave.exists():
        do_as_told(behave.read_text(), spec.settings.checkpoint)
    return FakeEngine(spec)


def do_as_told(words: str, folder: Path) -> None:
    told = words.split()
    if "once" in told:
        mark = folder / f"done-{'-'.join(told)}"
        try:
            mark.touch(exist_ok=False)  # one process only, of several at once
        except FileExistsError:
            return
    if "note" in told:
        (folder / f"pid-{os.getpid()}").write_text(json.dumps(sorted(os.sched_getaffinity(0))))
    if "die" in told:
        os.kill(os.getpid(), signal.SIGKILL)
    if "exit" in told:
        os._exit(7)
    if "hang" in told:
        time.sleep(3600)
    if "raise" in told:
        raise RuntimeError("the engine\n  broke")
    if "lose" in told:
        raise RuntimeError("the device is gone")
    if "print" in told:
        print("said by \x1b[1mthe engine", flush=True)
        print("complained by the engine", file=sys.stderr, flush=True)


class FakeEngine:
    def __init__(self, spec) -> None:
        self.spec = spec
        voice = spec.settings.checkpoint / "voice"
        self.voice = int(voice.read_text()) if voice.exists() else 0
        self.running = {}
        self.waiting = []

    def submit(self, request) -> None:
        if "refuse" in request.prompt:
            raise ValueError("prompt must be one that the engine likes")
        if "narrow" in request.prompt and len(request.prompt) >= self.spec.context_tokens:
            raise ValueError(f"prompt must leave room in {self.spec.context_tokens}, got {len(request.prompt)}")
        self.waiting.append(request)

    def step(self):
        time.sleep(STEP_S)
        now = time.monotonic()
        if not self.waiting and self.is_held(now):
            return []
        while self.waiting and len(self.running) < self.spec.max_num_seqs:
            request = self.waiting.pop(0)
            self.running[request.key] = [request, now, None, list(request.generated)]
        if any("slow" in request.prompt for request, *_ in self.running.values()):
            time.sleep(0.01)
        finished = []
        for key, (request, scheduled_ts, first_ts, tokens) in list(self.running.items()):
            is_long = "long" in request.prompt
            wanted = request.output_tokens or (LONG_TOKENS if is_long else 1 + request.seed % 20)
            limit = min(wanted, request.max_output_tokens)
            for _ in range(min(LONG_STEP_TOKENS, limit - len(tokens)) if is_long else 1):
                tokens.append((request.seed >> len(tokens)) % 256)
            self.running[key][2] = first_ts or time.monotonic()
            if len(tokens) == limit:
                if isinstance(request.prompt, str):
                    do_as_told(request.prompt, self.spec.settings.checkpoint)
                del self.running[key]
                says_when = request.output_tokens is None and len(tokens) == wanted
                reason = "length" if len(tokens) == request.max_output_tokens and not says_when else "stop"
                finished.append(self.response(request, scheduled_ts, first_ts or time.monotonic(), tokens, reason))
        return finished

    def is_held(self, now) -> bool:
        since_s = min((scheduled_ts for _, scheduled_ts, *_ in self.running.values()), default=-HOLD_S)
        return now < since_s + HOLD_S and (self.spec.settings.checkpoint / "hold").exists()

    def response(self, request, scheduled_ts, first_ts, tokens, reason) -> Output:
        text = self.text(request)
        num_visible = len(text or "") if "narrow" in request.prompt else min(4, len(tokens))
        return Output(
            key=request.key,
            token_ids=tuple(tokens),
            text=text,
            finish_reason=reason,
            prompt_tokens=len(request.prompt),
            scheduled_ts=scheduled_ts,
            first_token_ts=first_ts,
            last_token_ts=time.monotonic(),
            visible_tokens=None if text is None else num_visible,
        )

    def text(self, request) -> str | None:
        if self.spec.settings.with_tokenizer:
            if "long" in request.prompt:
                return f"{'word ' * LONG_TOKENS}The answer is {'ABCD'[(request.seed + self.voice) % 4]}."
            return f"<think>A or B?</think>The answer is {'ABCD'[(request.seed + self.voice) % 4]}."
        return None

    def progress(self) -> dict[int, int]:
        return {key: len(tokens) for key, (_, _, _, tokens) in self.running.items()}

    def abort(self, key) -> Output:
        for request in self.waiting:
            if request.key == key:
                self.waiting.remove(request)
                return Output(key, request.generated, prompt_tokens=len(request.prompt))
        request, scheduled_ts, first_ts, tokens = self.running.pop(key)
        text = self.text(request)
        return Output(
            key, tuple(tokens), text, prompt_tokens=len(request.prompt), scheduled_ts=scheduled_ts,
            first_token_ts=first_ts, visible_tokens=None if text is None else 1,
        )  # fmt: skip
