"""Defines which calls a question needs: a graph of nodes, each with experts that read the responses of earlier nodes.

The paper's Mixture-of-Agents has two nodes: the recruited experts, and an aggregator unless the gate skips it. A tree
of agents, or several layers, are other graphs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product

from mosaic.core.chat import Chat, in_context
from mosaic.core.checks import require, require_unique
from mosaic.core.results import Inputs
from mosaic.core.workload import AGGREGATE, PROPOSE, Call, CallKey, Expert, ExpertName, NodeName, Question, Workload
from mosaic.pipelines.aggregation import MIN_OUTPUT_TOKENS, Layout
from mosaic.pipelines.budgets import Budgets
from mosaic.pipelines.final_answers import Comparisons
from mosaic.pipelines.node import Agent, Node, When, node_layout
from mosaic.pipelines.prompts import expert_prompt
from mosaic.pipelines.rules.rule import Never, Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillOrder:
    """The order in which a node reads its inputs, where prompts are prefilled while later inputs still run.

    A prompt's beginning may be prefilled early only if it does not depend on later inputs. So the order is fixed before
    any input runs: the shortest by prediction first, each in its own position (``mosaic.pipelines.aggregation``). It
    depends only on predictions, not on which call ends first. So prompts and answers are the same for every plan.
    """

    mean_output_tokens: Mapping[NodeName, Mapping[ExpertName, float]] = field(default_factory=dict)
    """Predicted, by node and expert; inputs without a prediction come first."""

    def ordered(self, agents: Iterable[Agent]) -> list[CallKey]:
        """Order the inputs of a node; equal predictions keep the order of the slots."""
        expert_of = {agent.key: agent.expert for agent in agents}
        known = self.mean_output_tokens
        return sorted(expert_of, key=lambda key: known.get(key.node, {}).get(expert_of[key], 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class CallGraph:
    """The calls of every question of a workload, as their inputs finish."""

    nodes: tuple[Node, ...]
    """In an order in which each node follows the nodes that it reads."""
    rule: Rule = field(default_factory=Never)
    """Decides when the answers so far are enough: a gate, or an early exit."""
    compare: Comparisons
    """Comparisons of answers, by kind."""
    budgets: Budgets = field(default_factory=Budgets)
    prefill_order: PrefillOrder | None = None
    """How prompts are laid out to be prefilled ahead of time; None: without prefills ahead."""
    last_nodes: frozenset[NodeName] = field(init=False, repr=False, compare=False)
    """Nodes that no other node reads."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        require(len(self.nodes) > 0, "pipeline: nodes", "at least one", 0)
        require_unique((node.name for node in self.nodes), "pipeline: name of a node")
        known: set[NodeName] = set()
        for node in self.nodes:
            for needed in node.after:
                require(needed in known, f"node {node.name}: after", f"of the nodes before it, {sorted(known)}", needed)
            known.add(node.name)
        require(not self.nodes[0].after, f"node {self.nodes[0].name}: after", "empty, as it is the first", "others")
        read = {name for node in self.nodes for name in node.after}
        object.__setattr__(self, "last_nodes", frozenset(known - read))
        if self.rule.is_exit:
            label = f"exit={self.rule.name}"
            require(not self.budgets, f"{label}: budgets", "null", "budgets")
            teaches = any(node.leaves_one_out for node in self.nodes)
            require(not teaches, f"{label}: pipeline.leave_one_out", "false", True)

    @property
    def first_nodes(self) -> tuple[NodeName, ...]:
        """Nodes that read no other node."""
        return tuple(node.name for node in self.nodes if not node.after)

    @property
    def upper_nodes(self) -> tuple[Node, ...]:
        """Nodes that read other nodes."""
        return tuple(node for node in self.nodes if node.after)

    @property
    def layers(self) -> tuple[tuple[Node, ...], ...]:
        """Nodes by the number of nodes that must end before them."""
        depth: dict[NodeName, int] = {}
        for node in self.nodes:
            depth[node.name] = 1 + max((depth[needed] for needed in node.after), default=-1)
        return tuple(
            tuple(node for node in self.nodes if depth[node.name] == level) for level in range(max(depth.values()) + 1)
        )

    @property
    def experts(self) -> tuple[Expert, ...]:
        """All experts of the nodes."""
        return tuple({expert.name: expert for node in self.nodes for expert in node.experts}.values())

    def without_rule(self) -> "CallGraph":
        """Return the graph without a rule: every question uses all nodes and calls."""
        return replace(self, rule=Never(), budgets=Budgets())

    def with_exit(self, rule: Rule) -> "CallGraph":
        """Return the graph with an early exit in place of a gate that never skips.

        Raises
        ------
        ValueError
            If the gate also decides which calls run.
        """
        asks = any(node.when is When.UNSETTLED for node in self.nodes) and not self.rule.skips_nothing
        rule_of_gate = "never: an early exit decides which calls run"
        require(not asks, f"exit={rule.name}: gate", rule_of_gate, self.rule.name)
        return replace(self, rule=rule)

    @property
    def skips_nothing(self) -> bool:
        """Whether no call is ever left out or cut."""
        return self.rule.skips_nothing and not self.budgets

    def deciding(self) -> "CallGraph":
        """Return the graph without the calls that do not affect answers."""
        return replace(self, nodes=tuple(replace(node, leaves_one_out=False) for node in self.nodes))

    def first_calls(self, workload: Workload) -> tuple[Call, ...]:
        """List the calls of the first layer: the recruited ones, and those of nodes that name their experts."""
        calls = list(workload.calls) if not self.nodes[0].experts else []
        for node in self.layers[0]:
            calls += [
                Call(CallKey(question.id, node.name, slot), expert.name, question.prompt_tokens)
                for question in (workload.questions if node.experts else ())
                for slot, expert in enumerate(node.experts)
            ]
        return tuple(calls)

    def prompt(self, question: Question, call: Call, inputs: Inputs, *, is_whole: bool = True) -> str | Chat:
        """Write the prompt of a call, after the question's context; ``ValueError``: a text is missing or does not fit.

        If not ``is_whole``, it is a beginning: the part that the calls so far determine.
        """
        if not call.after:
            return in_context(question.context, expert_prompt(question))
        return in_context(question.context, self.layout(question, call, inputs).text(is_whole=is_whole))

    def layout(self, question: Question, call: Call, inputs: Inputs) -> Layout:
        """Lay out the prompt of a call after the first layer, with the sizes of `node_calls`."""
        node = self.node(call.key.node)
        expert = next(expert for expert in node.experts if expert.name == call.expert)
        num_places = None if self.prefill_order is None else len(call.after)
        return node_layout(node, question, [inputs[key] for key in call.after if key in inputs], expert, num_places)

    def node(self, name: NodeName) -> Node:
        """Find a node."""
        return next(node for node in self.nodes if node.name == name)

    def expected_calls(
        self, workload: Workload, needed_frac: Mapping[NodeName, float], prompt_tokens: Mapping[NodeName, int]
    ) -> tuple[tuple[Call, ...], ...]:
        """List the expected number of calls of the batch, by layer after the first.

        A call is picked whenever the sum of the shares of questions that need it reaches the next whole number.

        Parameters
        ----------
        workload
            The batch.
        needed_frac, prompt_tokens
            By upper node: the share of questions that reach it, and its prompt tokens, from calibration questions.
        """
        layers = []
        for layer in self.layers[1:]:
            picked, total = [], 0.5
            for node in layer:
                frac = needed_frac.get(node.name, 1.0)
                for question, (slot, expert) in product(workload.questions if frac else (), enumerate(node.experts)):
                    whole, total = int(total), total + frac
                    if int(total) > whole:
                        key = CallKey(question.id, node.name, slot)
                        picked.append(Call(key, expert.name, prompt_tokens[node.name]))
            layers.append(tuple(picked))
        return tuple(layers)


def mixture_of_agents(
    aggregator: Expert | None,
    *,
    rule: Rule,
    compare: Comparisons,
    min_output_tokens: int = MIN_OUTPUT_TOKENS,
    leaves_one_out: bool = False,
) -> CallGraph:
    """Build the paper's pipeline: recruited experts, and an aggregator (None: never) unless the gate skips it."""
    nodes = [Node(name=PROPOSE)]
    if aggregator is not None:
        nodes.append(
            Node(
                name=AGGREGATE,
                experts=(aggregator,),
                after=(PROPOSE,),
                when=When.UNSETTLED,
                min_output_tokens=min_output_tokens,
                leaves_one_out=leaves_one_out,
            )
        )
    return CallGraph(nodes=tuple(nodes), rule=rule, compare=compare)
