"""What every attack, defense, model and data set promises, as checks that say what is broken.

`bdbench check` runs them on a plugin, and the tests on everything that is registered.
"""

# Imported for the promises that they register, in the order in which these are checked.
from bdbench.contract import others as others  # isort: skip
from bdbench.contract import attacks as attacks
from bdbench.contract import datasets as datasets
from bdbench.contract import defenses as defenses
from bdbench.contract import models as models
