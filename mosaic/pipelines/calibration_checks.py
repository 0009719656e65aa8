"""Whether what promises something was calibrated on other questions than the batch's, and on answers of what runs."""

from mosaic.core.workload import Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.exits import calibrated_gate
from mosaic.pipelines.gates.calibrated import Calibrated
from mosaic.pipelines.gates.setting import ANSWERS, EXPERT, Setting, load_setting, name_differences
from mosaic.pipelines.gates.weighted import Weighted


def check_batch(graph: CallGraph, workload: Workload) -> None:
    """Check that a gate or an exit which promises something was not calibrated on the batch's own questions."""
    promised = calibrated_gate(graph.exit)
    if promised is not None:
        check_other_questions("exit.calibration", promised.question_ids, workload)
    if isinstance(graph.gate, Calibrated):
        check_other_questions("gate.calibration", graph.gate.question_ids, workload)


def check_other_questions(key: str, calibration_ids: frozenset[str], workload: Workload) -> None:
    """Check that what promises something was not calibrated on the batch's own questions."""
    shared = [question.id for question in workload.questions if question.id in calibration_ids]
    if shared:
        raise ValueError(
            f"{key} must hold other questions than the batch, got {len(shared)} of the batch's own, "
            f"{shared[0]!r} among them: it promises nothing for questions that it was calibrated on. A published "
            "workload gives others with workload.part=calibration gate=never"
        )


def check_calibration(graph: CallGraph, setting: Setting) -> None:
    """Check that a gate was calibrated on answers of what runs here.

    A promise is of everything in the setting. Weighted votes promise nothing, and read what the experts that run here
    have answered: other questions and another aggregator teach the same.
    """
    promised = calibrated_gate(graph.exit)
    if promised is not None:
        check_same_setting("exit.calibration", str(promised.calibration), setting, "exit=never gate=never")
    if not isinstance(graph.gate, Calibrated | Weighted):
        return
    there = load_setting(graph.gate.calibration)
    if isinstance(graph.gate, Weighted):
        known = {ANSWERS, *(key for key in setting if key.startswith(EXPERT) and key in there)}
        there, setting = ({key: one[key] for key in one if key in known} for one in (there, setting))
    differences = name_differences(there, setting)
    if differences:
        raise ValueError(
            f"gate.calibration must hold answers of what runs here, got {graph.gate.calibration}: {differences}. "
            f"What gate={graph.gate.name} learned there does not hold here. Make the file again: this command with "
            "gate=never and other questions (of a published workload: workload.part=calibration)"
        )


def check_same_setting(key: str, path: str, setting: Setting, again: str) -> None:
    """Check that what promises something was calibrated on answers of what runs here."""
    if differences := name_differences(load_setting(path), setting):
        raise ValueError(
            f"{key} must hold answers of what runs here, got {path}: {differences}. What was learned there does not "
            f"hold here. Make it again: this command with {again} and other questions"
        )
