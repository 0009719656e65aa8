r"""Lays out the aggregator's prompt, counts its tokens, and cuts responses that do not fit.

The context rule. A prompt takes at most ``prompt_limit`` tokens, so that the aggregator keeps room to write:

1. The prompt has both copies of the question if every response then still gets its header and ``MIN_RESPONSE_TOKENS``.
2. Otherwise the second copy, after the responses, is dropped.
3. If that is not enough, ``fits_context`` is false and there is no prompt: the caller keeps the majority.
4. The room that instructions, question and headers leave is shared equally. The part that a short response does not
   use goes to the longer ones (``shares``).
5. A response longer than its share is cut at its beginning, marked by ``CUT_MARKER``. It keeps its end, which has its
   final answer.

Prompts may be prefilled ahead of time (``PrefillOrder`` in `mosaic.pipelines.call_graph`). Then a beginning must not
depend on what follows it. So each possible response has a position, ``num_places`` in all. In rule 4 each has a fixed
share: an equal part of the room for all of them. The unused part of a share stays unused, and a response longer than
its share is cut by rule 5.

Responses of failed calls, and those with no text beside their thinking, are left out. The others are numbered without a
gap. If none is left, the aggregator answers the question alone. Tokens of texts are estimated from their characters
(``count_text_tokens``) unless a record has a count; the engine's chat markers are not counted. If the estimate is too
low, ``as_counted`` uses the engines' counts for the question: the prompt is then cut further, the longest response
first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import NamedTuple

from mosaic.core.chat import count_text_tokens
from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.workload import AnswerKind, Expert, ExpertName, Question

CUT_MARKER = "[... beginning cut ...]\n"
MIN_RESPONSE_TOKENS = 64
"""A response keeps at least so many tokens: a marker and a sentence with the final answer."""
MIN_OUTPUT_TOKENS = 4096
"""Room that a prompt leaves for the aggregator's output, by default."""

_COMPARE = """\
Several models were asked the question below, and their responses follow it. Each may be wrong, and so may all of them \
together: agreement is no proof. Check the responses critically, fact by fact and step by step, find out where they \
differ and which of them is right there, and correct what is wrong in all of them. Then give your own final answer.

"""
_ALONE = "Answer the question below. Work it out step by step, and check the result before you give it.\n\n"
FORM = {
    AnswerKind.CHOICE: 'Finish with the line "The answer is (X)", with the letter of the option you choose as X.',
    AnswerKind.MATH: r"Finish with your final answer, and nothing but it, inside \boxed{...}.",
    AnswerKind.TEXT: "Finish with your final answer, complete in itself: its reader does not see the responses.",
}
"""How a response must state its answer, so that it can be extracted."""


class Response(NamedTuple):
    """The response of one expert, without its thinking."""

    expert: ExpertName
    """For the caller: the prompt does not name the expert, since a known name would bias the reader."""
    visible_tokens: int
    text: str | None = None
    """None in a simulation, which has only lengths."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The content of a prompt: the responses, and how much of each."""

    question: Question
    responses: tuple[Response, ...]
    given_tokens: tuple[int, ...]
    """Of each response."""
    num_copies: int
    """Of the question: 1 or 2."""
    fixed_tokens: int
    """Instructions, headers and the copies of the question."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the whole prompt.

        If all texts are counted by their characters, this is never below the count of the whole text. Rounding adds at
        most one token per response and copy of the question.
        """
        return self.fixed_tokens + sum(self.given_tokens)

    @property
    def begin_tokens(self) -> int:
        """Tokens of the part of the prompt that the responses so far determine."""
        scaffold = count_text_tokens(_begin("", [""] * len(self.responses)))
        return scaffold + self.question.context_tokens + self.question.prompt_tokens + sum(self.given_tokens)

    @property
    def cut_experts(self) -> tuple[ExpertName, ...]:
        """Experts whose responses are cut at their beginning."""
        given = zip(self.responses, self.given_tokens, strict=True)
        return tuple(response.expert for response, share in given if share < response.visible_tokens)

    def text(self, *, is_whole: bool = True) -> str:
        """Write instructions, the question, the responses, the question again.

        If not ``is_whole``, the text ends after its last response: with positions, every longer prompt begins with it.

        Raises
        ------
        ValueError
            If a text is absent.
        """
        question = self.question
        if question.text is None:
            raise ValueError(f"question {question.id}: text must be there to write a prompt from, got None")
        texts = []
        for number, ((_, tokens, text), share) in enumerate(zip(self.responses, self.given_tokens, strict=True)):
            if text is None:
                raise ValueError(f"question {question.id}: text of response {number} must be there, got None")
            texts.append(_cut(text.strip(), tokens, share))
        if not is_whole:
            return _begin(question.text, texts)
        return _write(question.answer_kind, question.text, texts, self.num_copies)


def lay_out(
    question: Question,
    responses: Iterable[Response],
    expert: Expert,
    *,
    min_output_tokens: int = MIN_OUTPUT_TOKENS,
    num_places: int | None = None,
) -> Layout:
    """Lay out the prompt of an expert: a question, and the responses with text beside their thinking.

    Parameters
    ----------
    question, responses, expert
        The content, and the expert that reads it.
    min_output_tokens
        Room to leave for its output (``prompt_limit``).
    num_places
        Number of responses with a fixed share; None: the given responses share the room.

    Raises
    ------
    ValueError
        If the question does not fit (``fits_context``).
    """
    read = tuple(one for one in responses if one.visible_tokens > 0 and (one.text is None or one.text.strip()))
    tokens = [response.visible_tokens for response in read]
    limit = prompt_limit(expert, min_output_tokens=min_output_tokens)
    num_copies, left = _room(question, len(read) if num_places is None else num_places, limit)
    if num_places is None:
        given = shares(tokens, left)
    else:
        given = tuple(min(length, left // max(1, num_places)) for length in tokens)
    num_copies = num_copies if read else 1  # without a response, two copies would be adjacent
    return Layout(question, read, given, num_copies, _fixed_tokens(question, len(read), num_copies))


def as_counted(
    question: Question,
    read: Sequence[CallRecord],
    aggregator: Expert,
    *,
    text_rate: float,
    min_output_tokens: int = MIN_OUTPUT_TOKENS,
) -> Question:
    """Return a question with the engines' token count, if its estimate is lower.

    The calls in ``read`` read only the question, in a template. ``text_rate`` is the number of real tokens per
    estimated token of a text; it is applied to the instructions too. A prompt that fits by estimates still fits:
    responses keep ``MIN_RESPONSE_TOKENS`` each.
    """
    num_responses = len(finished(read))
    counted = max((record.prompt_tokens for record in finished(read)), default=0) - question.context_tokens
    scaffold = _scaffold_tokens(question.answer_kind, num_responses, 1)
    limit = prompt_limit(aggregator, min_output_tokens=min_output_tokens)
    most = limit - scaffold - question.context_tokens - num_responses * MIN_RESPONSE_TOKENS
    tokens = max(question.prompt_tokens, counted) + ceil(scaffold * max(0.0, text_rate - 1))
    return replace(question, prompt_tokens=max(question.prompt_tokens, min(tokens, most)))


def visible_tokens(record: CallRecord) -> int:
    """Count the tokens of a response that an aggregator can read: all of them, if its thinking is not known."""
    return record.output_tokens if record.visible_tokens is None else record.visible_tokens


def finished(records: Iterable[CallRecord]) -> list[CallRecord]:
    """Return the records that can be read."""
    return [record for record in records if record.status is CallStatus.FINISHED]


def prompt_limit(aggregator: Expert, *, min_output_tokens: int = MIN_OUTPUT_TOKENS) -> int:
    """Most tokens of a prompt: context - min(min_output_tokens, max_output_tokens, context / 2).

    The reserve is at most half the context, so that a model with a short context can read at all.
    """
    reserve = min(min_output_tokens, aggregator.max_output_tokens, aggregator.context_limit // 2)
    return aggregator.context_limit - reserve


def fits_context(
    question: Question, aggregator: Expert, num_responses: int, *, min_output_tokens: int = MIN_OUTPUT_TOKENS
) -> bool:
    """Return whether the aggregator can read a question once, with a useful part of the given number of responses.

    A question that fits with some number of responses fits with fewer.
    """
    limit = prompt_limit(aggregator, min_output_tokens=min_output_tokens)
    return _fixed_tokens(question, num_responses, 1) + num_responses * MIN_RESPONSE_TOKENS <= limit


def _room(question: Question, num_responses: int, limit: int) -> tuple[int, int]:
    """Return how many copies of the question fit, and the tokens left for the responses."""
    least = num_responses * MIN_RESPONSE_TOKENS
    fixed = 0
    for num_copies in (2, 1) if num_responses else (1,):
        fixed = _fixed_tokens(question, num_responses, num_copies)
        if fixed + least <= limit:
            return num_copies, limit - fixed
    raise ValueError(
        f"question {question.id}: instructions, question and {num_responses} responses of at least "
        f"{MIN_RESPONSE_TOKENS} tokens each must be at most the {limit} tokens that the aggregator can read, "
        f"got {fixed + least}"
    )


def _fixed_tokens(question: Question, num_responses: int, num_copies: int) -> int:
    scaffold = _scaffold_tokens(question.answer_kind, num_responses, num_copies)
    return scaffold + question.context_tokens + num_copies * question.prompt_tokens


@cache
def _scaffold_tokens(kind: AnswerKind, num_responses: int, num_copies: int) -> int:
    """Count the tokens of a prompt beside question and responses."""
    return count_text_tokens(_write(kind, "", [""] * num_responses, num_copies))


def shares(tokens: Sequence[int], budget: int) -> tuple[int, ...]:
    """Divide a budget equally; the part that a short response does not use goes to the longer ones.

    Each gets the smaller of its tokens and a common level: the highest whole level that the budget
    allows. So the order does not matter, and fewer tokens than there are responses stay unused.

    Examples
    --------
    >>> shares([10, 100, 200], 150)
    (10, 70, 70)
    """
    if sum(tokens) <= budget:
        return tuple(tokens)
    left, level = budget, 0
    for place, length in enumerate(sorted(tokens)):
        level = left // (len(tokens) - place)
        if length > level:
            break
        left -= length
    return tuple(min(length, level) for length in tokens)


def _cut(text: str, tokens: int, share: int) -> str:
    """Keep the end of a response, measured by the average number of characters of its tokens."""
    if tokens <= share:
        return text
    num_characters = (share - count_text_tokens(CUT_MARKER)) * len(text) // tokens
    return CUT_MARKER + text[len(text) - num_characters :]


def _write(kind: AnswerKind, question: str, responses: Sequence[str], num_copies: int) -> str:
    if not responses:
        return f"{_ALONE}{_stated(question)}{FORM[kind]}"
    again = f"The question again:\n{question}\n\n" if num_copies == 2 else ""
    return f"{_begin(question, responses)}{again}{FORM[kind]}"


def _begin(question: str, responses: Sequence[str]) -> str:
    answers = "".join(f"Response {number}:\n{text}\n\n" for number, text in enumerate(responses, start=1))
    return f"{_COMPARE}{_stated(question)}{answers}"


def _stated(question: str) -> str:
    return f"Question:\n{question}\n\n"
