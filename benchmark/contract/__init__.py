"""The contract of attacks, defenses, models and data sets, as checks that explain every failure.

`bdbench check` runs them on one plugin, and the tests run them on all registered plugins.
"""

# These modules register promises. Their order is that of the checks.
from bdbench.contract import common as common  # isort: skip
from bdbench.contract import attacks as attacks
from bdbench.contract import datasets as datasets
from bdbench.contract import defenses as defenses
from bdbench.contract import models as models
