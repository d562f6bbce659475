from .ablation import ablation_study as ablation_study
from .ablation import cross_fitted_study as cross_fitted_study
from .activations import ActivationStore as ActivationStore
from .activations import harvest as harvest
from .activations import harvest_recordings as harvest_recordings
from .activations import stream as stream
from .base import Batch as Batch
from .base import NeuroLensError as NeuroLensError
from .base import Task as Task
from .hooks import HookedDecoder as HookedDecoder
from .hooks import hook_model as hook_model
from .hooks import register_decoder as register_decoder
from .report import plot_tuning as plot_tuning
from .saes import evaluate_sae as evaluate_sae
from .saes import load_sae as load_sae
from .saes import train_sae as train_sae
from .studies import run_study as run_study
from .tuning import covariates as covariates
from .tuning import feature_groups as feature_groups
from .tuning import global_test as global_test
from .tuning import probe as probe
from .tuning import significant as significant
from .tuning import trial_codes as trial_codes
from .tuning import tune as tune
from .tuning import tuning_curves as tuning_curves

__version__: str
