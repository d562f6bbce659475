"""Studies: a YAML file says what to do; running it goes from recordings to a report."""

from .diff import compare_runs, diff_text
from .plan import plan_study, plan_text
from .planning import plan_cells
from .run import StudyStopped, run_study
from .schema import Study
from .study_file import bundled_study, load_study
from .sweeps import quick_form

__all__ = [
    "Study",
    "StudyStopped",
    "bundled_study",
    "compare_runs",
    "diff_text",
    "load_study",
    "plan_cells",
    "plan_study",
    "plan_text",
    "quick_form",
    "run_study",
]
