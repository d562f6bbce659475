"""Studies: a YAML file says what to do; running it goes from recordings to a report."""

from .planning import plan_cells
from .run import StudyStopped, run_study
from .schema import Study
from .study_file import bundled_study, load_study

__all__ = ["Study", "StudyStopped", "bundled_study", "load_study", "plan_cells", "run_study"]
