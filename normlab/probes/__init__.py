"""Probes look into a network: what its layers are given, its gradients, and the loss around it."""

from .activations import correlation as correlation
from .activations import effective_rank as effective_rank
from .gradients import gradients as gradients
from .gradients import noise_scale as noise_scale
from .landscape import along_gradient as along_gradient
from .landscape import interaction as interaction
from .landscape import sharpness as sharpness
from .probed import PROBES as PROBES
from .probed import Probed as Probed
from .probed import probe as probe
from .problem import Problem as Problem
from .problem import layers_of as layers_of
from .reports import Report as Report
from .reports import reporting as reporting
from .shift import internal_covariate_shift as internal_covariate_shift
from .weights import undone as undone
from .weights import weights as weights
