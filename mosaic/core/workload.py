"""The batch: its questions, the experts that may answer them, and the calls to make."""

import sys
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, NamedTuple, TypeAlias

import msgspec

from mosaic.core.chat import Message, Sampling, count_text_tokens
from mosaic.core.checks import (
    AtLeast0,
    AtLeast1,
    Limit,
    Name,
    NotNegative,
    Share,
    checked,
    require,
    require_count,
    require_number,
    require_unique,
)  # fmt: skip

ExpertName: TypeAlias = str
NodeName: TypeAlias = str
"""Name of a node of a call graph."""
PROPOSE: NodeName = "propose"
AGGREGATE: NodeName = "aggregate"
"""The two nodes of the paper's pipeline."""

OPTION_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of a multiple-choice question's options, in order."""
PAGE_TOKENS = 16
"""Tokens of a page in FlexiCache; a page also has a summary, the smallest and the largest of its keys."""
PROMOTED_FRAC = 0.29
"""The middle of the published range, 0.23 to 0.35."""


class Family(StrEnum):
    """Reasoning experts think at length before they answer; instruct experts answer at once."""

    REASONING = "reasoning"
    INSTRUCT = "instruct"


class AnswerKind(StrEnum):
    """How two answers to a question are compared."""

    CHOICE = "choice"
    """A letter of a multiple-choice question."""
    MATH = "math"
    """A number or an expression; mathematically equal answers are equal."""
    TEXT = "text"
    """Free text, which needs a comparison provided by the user."""


class CallKey(NamedTuple):
    """Identity of a call: the same in every plan, world and result."""

    question: str
    node: NodeName
    slot: int

    def __str__(self) -> str:
        return f"{self.question}/{self.node}/{self.slot}"


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("shape.")
class ModelShape:
    """Dimensions of a decoder-only transformer that determine time and memory.

    NOTE: a layer's feed-forward part may be a mixture of experts, in which each token passes through a few networks.
    (The models of a pool are other experts.) Then all layers are assumed to have one.
    """

    num_parameters: AtLeast1
    num_layers: AtLeast1
    hidden_size: AtLeast1
    ffn_size: AtLeast1
    num_query_heads: AtLeast1
    num_kv_heads: AtLeast1
    head_dim: AtLeast1
    vocab_size: AtLeast1
    bytes_per_value: AtLeast1 = 2
    """Of weights and KV cache (2: bf16)."""
    tied_embeddings: bool = False
    """True if the input embedding and the LM head are one matrix."""
    num_experts: AtLeast0 = 0
    """Routed experts of a layer; 0: a dense model."""
    num_active_experts: AtLeast0 = 0
    """The number of them that a token passes through."""
    num_shared_experts: AtLeast0 = 0
    """Further experts, through which every token passes."""
    expert_ffn_size: AtLeast0 = 0
    """Intermediate size of one expert."""

    def __post_init__(self) -> None:
        self._check_experts()
        rule = f"a multiple of num_kv_heads={self.num_kv_heads}"
        require(self.num_query_heads % self.num_kv_heads == 0, "shape.num_query_heads", rule, self.num_query_heads)
        rule = f"above those of the embeddings and routed experts, {self.num_parameters - self.num_block_parameters}"
        require(self.num_block_parameters > 0, "shape.num_parameters", rule, self.num_parameters)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights over all workers of a session."""
        return self.num_parameters * self.bytes_per_value

    @property
    def num_block_parameters(self) -> int:
        """Parameters outside the embedding and the LM head: those of the layers, routed experts excluded."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return self.num_parameters - embeddings - self.num_routed_parameters

    @property
    def num_expert_parameters(self) -> int:
        """Parameters of one routed expert of one layer: gate, up and down projection."""
        return 3 * self.hidden_size * self.expert_ffn_size

    @property
    def num_routed_parameters(self) -> int:
        """Parameters of all routed experts of all layers."""
        return self.num_layers * self.num_experts * self.num_expert_parameters

    @property
    def active_ffn_size(self) -> int:
        """Intermediate values of a token in a layer, over all experts that the token passes through."""
        if not self.num_experts:
            return self.ffn_size
        return (self.num_active_experts + self.num_shared_experts) * self.expert_ffn_size

    def num_kv_heads_on_worker(self, tp_degree: int = 1) -> int:
        """KV heads of all layers on *each* worker; they are replicated if a layer has fewer than the degree."""
        return self.num_layers * max(1, -(-self.num_kv_heads // tp_degree))

    def kv_bytes_per_token(self, tp_degree: int = 1) -> int:
        """KV cache bytes per token on *each* worker."""
        return 2 * self.num_kv_heads_on_worker(tp_degree) * self.head_dim * self.bytes_per_value

    def _check_experts(self) -> None:
        experts = {"num_active_experts": self.num_active_experts, "expert_ffn_size": self.expert_ffn_size}
        for name, value in {**experts, "num_shared_experts": self.num_shared_experts}.items():
            if not self.num_experts:
                require(value == 0, f"shape.{name}", "0 where num_experts is", value)
            elif name in experts:
                require(value > 0, f"shape.{name}", f"at least 1 with num_experts={self.num_experts}", value)
        rule = f"at most num_experts={self.num_experts}"
        require(self.num_active_experts <= self.num_experts, "shape.num_active_experts", rule, self.num_active_experts)


class KvPolicy(StrEnum):
    """How the KV cache is kept."""

    FLEXICACHE = "flexicache"
    """Every head reads only its best pages; heads whose best pages seldom change keep the other pages in CPU memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("expert.kv: ")
class SparseKv:
    """FlexiCache: heads rank pages, and stable heads keep most of their pages in CPU memory.

    NOTE: a step scores pages by their summaries and reads the best ``budget_pages`` of every head. Unstable heads keep
    all pages on the GPU and rank them at every step. Stable heads rank them every ``rerank_every`` steps. They keep the
    best pages, and all tokens written until the next ranking. Pages that return to the best ones are promoted over the
    link to CPU memory, and the request waits for them.

    References
    ----------
    FlexiCache, arXiv 2511.00868.
    """

    policy: KvPolicy = KvPolicy.FLEXICACHE
    budget_pages: AtLeast1 = 64
    """Pages that a head reads."""
    rerank_every: AtLeast1 = 16
    """Steps from one ranking of a stable head to the next."""
    unstable_frac: Share = 0.25
    """Share of unstable heads among the KV heads of all layers."""
    promoted_frac: Share | None = None
    """Share of its best pages that a stable head fetches at a ranking, in simulation; null: PROMOTED_FRAC."""
    heads: Name | None = None
    """File of the unstable heads, for real engines; null: heads at equal distances over the model."""

    @property
    def promoted(self) -> float:
        """Share of the best pages that a ranking of a stable head fetches."""
        return PROMOTED_FRAC if self.promoted_frac is None else self.promoted_frac

    @property
    def budget_tokens(self) -> int:
        """Tokens of a long sequence that a head reads."""
        return self.budget_pages * PAGE_TOKENS

    @property
    def dense_tokens(self) -> int:
        """Longest sequence that is kept and read in full: the budget plus the tokens between two rankings."""
        return PAGE_TOKENS * (self.budget_pages - (-self.rerank_every // PAGE_TOKENS))

    @property
    def scored_frac(self) -> float:
        """Share of the heads that score all pages at a step."""
        return self.unstable_frac + (1 - self.unstable_frac) / self.rerank_every

    def num_unstable(self, num_heads: int) -> int:
        """Return the number of unstable heads among the given number."""
        return round(self.unstable_frac * num_heads)

    def long_read_tokens(self) -> float:
        """Tokens of a long sequence that attention reads, as a mean over steps and heads; scoring is extra."""
        return self.budget_tokens + (1 - self.unstable_frac) * self.rerank_every / 2

    def scored_tokens_per_token(self) -> float:
        """Tokens of a full KV cache that scoring reads, per token of a long sequence: summaries of 16 tokens."""
        return self.scored_frac / PAGE_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("expert {0.name}: ")
class Expert:
    """A model of the pool."""

    name: Name
    checkpoint: Name
    shape: ModelShape | None
    """None: only servers serve it, and its work there is not known."""
    family: Family
    temperature: NotNegative = 0.7
    max_output_tokens: AtLeast1 = 4096
    context_tokens: Annotated[int, Limit(at_least=2)] | None = 32768
    """None, without a shape: only its servers know it."""
    tp_degree: AtLeast1 = 1
    """Workers of one session."""
    max_replicas: AtLeast1 | None = None
    """Replica cap; null: equation 8 of the paper."""
    kv: SparseKv | None = None
    """A sparse KV cache, or its settings by name; null: the full cache is kept and read."""
    tp_degrees: tuple[AtLeast1, ...] = ()
    """Other tensor-parallel degrees that ``scheduler=flexible`` may choose; they are measured too."""
    dp_attention: bool = False
    """Whether the workers of a session are data-parallel ranks (simulated).

    Each rank serves its own calls; only the routed experts inside the model are shared. Otherwise the workers share the
    whole model by tensor parallelism.
    """

    def __post_init__(self) -> None:
        if not isinstance(self.shape, ModelShape | None):
            raise TypeError(f"expert {self.name}: shape must be a ModelShape or null, got {self.shape!r}")
        rule = "given where its shape is"
        require(
            self.shape is None or self.context_tokens is not None, f"expert {self.name}: context_tokens", rule, None
        )
        if isinstance(self.kv, Mapping):
            object.__setattr__(self, "kv", SparseKv(**self.kv))
        if not isinstance(self.kv, SparseKv | None):
            raise TypeError(f"expert {self.name}: kv must be a SparseKv, its settings or null, got {self.kv!r}")
        if self.dp_attention:
            rule = "false for a model without experts inside (shape.num_experts=0), and with a sparse kv"
            is_allowed = self.known_shape.num_experts > 0 and self.kv is None
            require(is_allowed, f"expert {self.name}: dp_attention", rule, True)

    @property
    def known_shape(self) -> ModelShape:
        """Its shape, for code that loads, simulates or plans it.

        Raises
        ------
        ValueError
            If it has none.
        """
        if self.shape is None:
            rule = "given where it is loaded, simulated or planned: only servers (backend=endpoint) do without"
            raise ValueError(f"expert {self.name}: shape must be {rule}, got None")
        return self.shape

    @property
    def context_limit(self) -> int:
        """Tokens of its context; more than any prompt has if only its servers know it."""
        return sys.maxsize if self.context_tokens is None else self.context_tokens

    @property
    def possible_degrees(self) -> tuple[int, ...]:
        """Its own tensor-parallel degree and the others that may be chosen."""
        return tuple(dict.fromkeys((self.tp_degree, *self.tp_degrees)))

    @property
    def kv_budget_tokens(self) -> int | None:
        """Tokens of a long sequence that a head reads; None: all of them."""
        return None if self.kv is None else self.kv.budget_tokens

    @property
    def num_ranks(self) -> int:
        """Data-parallel ranks of a session; 1: its workers are one engine."""
        return self.tp_degree if self.dp_attention else 1

    def attention_degree(self, num_workers: int) -> int:
        """Tensor-parallel degree of all parts but the routed experts, in a session over so many workers."""
        return 1 if self.dp_attention else num_workers

    def weight_bytes_on_worker(self, num_workers: int) -> int:
        """Bytes of the weights on each worker of a session over so many."""
        if not self.dp_attention:
            return self.known_shape.weight_bytes // num_workers
        routed_bytes = self.known_shape.num_routed_parameters * self.known_shape.bytes_per_value
        return self.known_shape.weight_bytes - routed_bytes + routed_bytes // num_workers

    def output_limit(self, prompt_tokens: int) -> int:
        """Most tokens that a call may write: min(its maximum, context - prompt)."""
        return min(self.max_output_tokens, self.context_limit - prompt_tokens)


class SourceLine(NamedTuple):
    """A line of a file of questions; a row where a file has no lines."""

    at: str
    """File and line, for messages."""
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("question {0.id}: ")
class Question:
    """An item of the batch. Text and answer may be absent when only lengths are simulated."""

    id: Name
    prompt_tokens: AtLeast1
    """Tokens of the question alone, without a prompt template."""
    text: str | None = None
    answer: str | None = None
    """Gold answer, where known: the option's letter, an expression, or a text."""
    category: str | None = None
    skills: tuple[str, ...] = ()
    answer_kind: AnswerKind = AnswerKind.TEXT
    num_options: int | None = None
    """Of a multiple-choice question, with options A, B, C and so on; None for any other kind."""
    context: tuple[Message, ...] = ()
    """Messages before the question, the system's message included."""
    sampling: Sampling | None = None
    """Of all its calls; None: as the experts sample."""
    source: SourceLine | None = field(default=None, compare=False)
    """What it was read from; None: no line of a file."""

    def __post_init__(self) -> None:
        self._check_options()

    @property
    def context_tokens(self) -> int:
        """Tokens of the messages before the question."""
        return sum(count_text_tokens(message.content) for message in self.context)

    def _check_options(self) -> None:
        label = f"question {self.id}: num_options"
        if self.answer_kind is not AnswerKind.CHOICE:
            require(self.num_options is None, label, f"null for an answer of kind {self.answer_kind}", self.num_options)
            return
        require_count(self.num_options, label, at_least=2)
        letters = OPTION_LETTERS[: self.num_options]
        require(self.num_options == len(letters), label, f"at most {len(OPTION_LETTERS)}", self.num_options)
        if self.answer is not None:
            require(self.answer in tuple(letters), f"question {self.id}: answer", f"one of {letters}", self.answer)


class Prefix(NamedTuple):
    """The beginning of a prompt, as names of its blocks of tokens, first to last.

    A name identifies all tokens up to the end of its block, like the hashes of a prefix cache. Prompts that share a
    name have the same tokens up to there.
    """

    blocks: tuple[Hashable, ...]
    block_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens of its blocks; the prompt may end inside the last block."""
        return len(self.blocks) * self.block_tokens


class Call(msgspec.Struct, frozen=True, gc=False):
    """One generation by one expert for one slot of a question."""

    key: CallKey
    expert: ExpertName
    prompt_tokens: int
    """Tokens that the engine prefills: template and question."""
    ready_s: float = 0.0
    """Arrival on the run's clock; 0 in a batch."""
    after: tuple[CallKey, ...] = ()
    """Calls that must have ended before this one starts."""
    prefix: Prefix | None = None
    """The part of the prompt that it shares with others; None: none."""

    def __post_init__(self) -> None:
        if type(self.prompt_tokens) is not int or self.prompt_tokens < 1:
            require_count(self.prompt_tokens, f"call {self.key}: prompt_tokens", at_least=1)
        if self.ready_s != 0.0:
            require_number(self.ready_s, f"call {self.key}: ready_s", at_least=0)


class BadLine(NamedTuple):
    """A line of a file of questions that cannot be used."""

    number: int
    """Of the line, or of the row where a file has no lines."""
    id: str | None
    """Of its question, where the line has one that is its own."""
    reason: str
    """With file and line, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("workload {0.name}: ")
class Workload:
    """Questions and the calls recruited for them, in arrival order."""

    name: Name
    questions: tuple[Question, ...]
    calls: tuple[Call, ...]
    output_tokens: Mapping[CallKey, int] | None = None
    """True lengths, where the source records them (a log, a file with lengths); for backends only."""
    bad_lines: tuple[BadLine, ...] = ()
    """Lines of its file that were left out."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What was guessed of its file or ignored in it, a line each."""

    def __post_init__(self) -> None:
        require(len(self.questions) > 0, f"workload {self.name}: questions", "at least one question", 0)
        require(len(self.calls) > 0, f"workload {self.name}: calls", "at least one call", 0)
        require_unique((question.id for question in self.questions), f"workload {self.name}: question id")
        require_unique((call.key for call in self.calls), f"workload {self.name}: call key")
        known = {question.id for question in self.questions}
        for call in self.calls:
            if call.key.question not in known:
                raise ValueError(f"workload {self.name}: call {call.key} must name a question of the workload")
        self._check_lengths()

    def _check_lengths(self) -> None:
        if self.output_tokens is None:
            return
        keys = {call.key for call in self.calls}
        for key, tokens in self.output_tokens.items():
            if key not in keys:
                raise ValueError(f"workload {self.name}: output_tokens must be of the workload's calls, got {key}")
            if type(tokens) is not int or tokens < 1:
                require_count(tokens, f"workload {self.name}: output_tokens of {key}", at_least=1)

    @property
    def num_calls_by_expert(self) -> dict[ExpertName, int]:
        """Number of calls per expert, experts in the order in which the questions first name them."""
        return dict(Counter(call.expert for call in self.calls))


class CalibrationRecord(NamedTuple):
    """One attempt of one expert at one calibration question."""

    skills: tuple[str, ...]
    expert: ExpertName
    right: bool
