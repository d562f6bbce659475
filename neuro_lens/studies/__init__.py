"""A study: its YAML file, its plan, and its run from recordings to report."""

from .run import run_study
from .schema import Study
from .study_file import bundled_study, load_study

__all__ = ["Study", "bundled_study", "load_study", "run_study"]
