"""Studies: a YAML file says what to do; running it goes from recordings to a report."""

from .run import plan_cells, run_study
from .schema import Study
from .study_file import bundled_study, load_study

__all__ = ["Study", "bundled_study", "load_study", "plan_cells", "run_study"]
