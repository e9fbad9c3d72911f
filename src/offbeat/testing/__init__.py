"""Conformance: what holds of every method, as checks that anyone can run on a method of their own.

    from offbeat.testing import check_method
    check_method(MyMethod(topology=Ring()))

Each check simulates small experiments and raises AssertionError with a text that says what does
not hold. `check_ledger` follows a conserved quantity through runs, event by event.
"""

from ..ledger import Ledger as Ledger
from .audit import AuditedSimulation as AuditedSimulation
from .audit import audited as audited
from .audit import check_ledger as check_ledger
from .audit import random_cluster as random_cluster
from .checks import check_agreement as check_agreement
from .checks import check_conservation as check_conservation
from .checks import check_declarations as check_declarations
from .checks import check_loss_of_workers as check_loss_of_workers
from .checks import check_messages as check_messages
from .checks import check_method as check_method
from .checks import check_repeats as check_repeats
from .checks import check_serial_equivalence as check_serial_equivalence
from .checks import check_solves_quadratic as check_solves_quadratic
from .checks import check_staleness as check_staleness
from .checks import check_start as check_start
from .experiments import Quadratic as Quadratic
from .experiments import fingerprint as fingerprint
from .experiments import simulated as simulated
from .experiments import small_experiment as small_experiment
