"""What a run has left behind so far, for plans that are made while it goes on."""

from mosaic.core.plan import home_of
from mosaic.planning.wrapped_costs import LoadedModels
from mosaic.runtime.controller import View


def left_behind(view: View) -> LoadedModels:
    """List the engines of all sessions that were opened and not lost, and what each worker was to load last."""
    held = LoadedModels()
    for number, session in view.opened.items():
        if number not in view.ended or view.ended[number] is not None:
            held = held.after(*home_of(session))
    return held
