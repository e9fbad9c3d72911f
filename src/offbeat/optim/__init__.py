"""Optimizers of torch's kind, for any loop: layer-wise learning rates, and late gradients.

They need nothing else of offbeat. offbeat itself takes them as it takes those of torch.optim:
`--optimizer LAMB --optimizer.lr 0.01`.

Schedules in a loop of one's own are torch's: `LinearLR` for a warm-up, then `PolynomialLR`, joined
by `SequentialLR`. Any schedule of `offbeat.schedule` serves too, counted in samples:

    LambdaLR(optimizer, lambda step: XuSchedule(decay=1e-4).factor(step * batch_size))
"""

from .averaging import polyak as polyak
from .delayed import Delayed as Delayed
from .delayed import NormalDelay as NormalDelay
from .groups import without_decay as without_decay
from .lamb import LAMB as LAMB
from .lars import LARS as LARS
from .normalized_momentum_lars import NormalizedMomentumLARS as NormalizedMomentumLARS
from .scaling import linear_scaling as linear_scaling
from .scaling import square_root_scaling as square_root_scaling
