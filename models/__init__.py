"""Networks, and the tools to train and query them.

A plugin imports what it needs from here. A name is imported on first access, so that parsing a spec
or writing a table does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdbench.models.plugins.faces import lazy

if TYPE_CHECKING:
    from bdbench.models.data import ImageSet as ImageSet
    from bdbench.models.data import portion as portion
    from bdbench.models.networks.classifier import Classifier as Classifier
    from bdbench.models.networks.classifier import lacks_head as lacks_head
    from bdbench.models.networks.classifier import stage_shapes as stage_shapes
    from bdbench.models.networks.classifier import trainable as trainable
    from bdbench.models.networks.traced import Traced as Traced
    from bdbench.models.plugins.errors import InvalidInput as InvalidInput
    from bdbench.models.plugins.errors import above as above
    from bdbench.models.plugins.errors import at_least as at_least
    from bdbench.models.plugins.errors import batch_sizes as batch_sizes
    from bdbench.models.plugins.errors import one_of as one_of
    from bdbench.models.plugins.errors import require as require
    from bdbench.models.plugins.errors import within as within
    from bdbench.models.plugins.spec import added as added
    from bdbench.models.plugins.spec import path_field as path_field
    from bdbench.models.registry import models as models
    from bdbench.models.registry import register as register
    from bdbench.models.training.augment import to_float as to_float
    from bdbench.models.training.context import TrainingContext as TrainingContext
    from bdbench.models.training.feed import Batch as Batch
    from bdbench.models.training.loop import accuracy as accuracy
    from bdbench.models.training.loop import features as features
    from bdbench.models.training.loop import logits as logits
    from bdbench.models.training.loop import loop as loop
    from bdbench.models.training.loop import predict as predict
    from bdbench.models.training.loop import sample_losses as sample_losses
    from bdbench.models.training.loop import train as train
    from bdbench.models.training.recipe import Recipe as Recipe
    from bdbench.models.training.resume import State as State
    from bdbench.models.training.resume import resumable as resumable

HOMES = {
    "data": ["ImageSet", "portion"],
    "networks.classifier": ["Classifier", "lacks_head", "stage_shapes", "trainable"],
    "networks.traced": ["Traced"],
    "plugins.errors": [
        "InvalidInput",
        "above",
        "at_least",
        "batch_sizes",
        "one_of",
        "require",
        "within",
    ],
    "plugins.spec": ["added", "path_field"],
    "registry": ["models", "register"],
    "training.augment": ["to_float"],
    "training.context": ["TrainingContext"],
    "training.feed": ["Batch"],
    "training.loop": [
        "accuracy",
        "features",
        "logits",
        "loop",
        "predict",
        "sample_losses",
        "train",
    ],
    "training.recipe": ["Recipe"],
    "training.resume": ["State", "resumable"],
}
__getattr__ = lazy(__name__, HOMES)
