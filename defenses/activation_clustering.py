"""Activation clustering, Chen et al., SafeAI at AAAI 2019, arXiv:1811.03728.

A network gives poisoned images the target label for another reason than clean ones, so within that
label their embeddings are two clusters. For each label, embeddings are reduced to ten independent
components and split by 2-means. If the two clusters describe them well and one is small, the label
is called poisoned, the small cluster is dropped, and a fresh network trains on the rest.

Differs: independent components are whitened principal components in a rotated basis, and neither
2-means nor silhouettes depend on a rotation; so there are only whitened principal components here,
which need no iteration and no random start. 2-means has a hundred random starts, because with few
it often misses a small cluster in ten dimensions: our choice. The paper offers three rules for a
cluster; here two of them must agree, the silhouette score and the relative size. The third trains
another network for each cluster in question. Images are grouped by their label as given, which the
network fits on nearly all of them; the paper's algorithm groups by the predicted class. It relabels
or drops poison; here it is dropped. The score of an image is its silhouette, negative in the
smaller cluster; the paper has none. Poison that outnumbers the clean images of its label is not the
smaller cluster: of ten classes, `badnets` at a rate of 0.1 poisons more than half of the target
label.

Elsewhere: the same thresholds on GTSRB and with other networks. A label with at most `components`
images is not judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.random import RandomState
from threadpoolctl import threadpool_limits
from torch import Tensor

from bdbench.defenses import Context, Defense, register
from bdbench.defenses.filters import by_label, embeddings, retrain
from bdbench.models import Classifier, ImageSet, Recipe, at_least, lacks_head, require

STARTS = 100
"""Random starts of 2-means, of which the best counts; with few, it often misses a small cluster."""
NEGLIGIBLE = 1e-6
"""Principal components with less than this share of the largest deviation are rounding errors."""


@register("activation_clustering", title="AC")
@dataclass(frozen=True)
class ActivationClustering(Defense):
    """
    components: dimensions to which the embeddings of a label are reduced, at least 2 (paper: 10)
    min_silhouette: a label is called poisoned if the mean silhouette of its images is at least
        this, in [-1, 1] (paper: 0.1 to 0.15)
    max_share: and if its smaller cluster has at most this share of its images, in (0, 0.5]; the
        largest poisoning that is expected (our choice)
    """

    undefended = 1

    components: int = 10
    min_silhouette: float = 0.1
    max_share: float = 0.35

    def __post_init__(self) -> None:
        at_least(2, components=self.components)
        least, most = self.min_silhouette, self.max_share
        require(-1 <= least <= 1, f"min_silhouette must be from -1 to 1, got {least}")
        require(0 < most <= 0.5, f"max_share must be above 0 and at most 0.5, got {most}")

    def lacks(self, network: Classifier, image_size: int) -> str:
        return lacks_head(network)

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        scores = torch.zeros(len(data), dtype=torch.float64)
        suspects = torch.zeros(len(data), dtype=torch.bool)
        activations = embeddings(context.undefended(), data)
        random = RandomState(context.rng("clusters").initial_seed() % 2**32)
        called, fits = 0, []
        for rows in by_label(data.labels.cpu()):
            reduced = whiten(activations[rows], self.components)
            if len(rows) <= self.components or not reduced.shape[1]:
                continue
            small, silhouettes = two_means(reduced, random)
            fits.append(float(silhouettes.mean()))
            poisoned = self.poisoned(fits[-1], float(small.double().mean()))
            called += poisoned
            scores[rows] = torch.where(small, -silhouettes, silhouettes)
            suspects[rows] = small & poisoned
        suspects = suspects.to(data.device)
        context.journal.filtered("silhouette", scores.float().to(data.device), suspects)
        context.journal.scalars |= {
            "labels judged": len(fits),
            "labels called poisoned": called,
            "largest silhouette": max(fits, default=0.0),
            "dropped images": int(suspects.sum()),
        }
        return retrain(data, suspects, context)

    def poisoned(self, silhouette: float, share: float) -> bool:
        """Whether a label with such a mean silhouette is poisoned, if its smaller cluster has this
        share of its images."""
        return silhouette >= self.min_silhouette and share <= self.max_share

    def cost(self, recipe: Recipe, images: int) -> float:
        # The number of dropped images is not known before.
        return 3.0 * recipe.epochs * 2 + 1


def whiten(activations: Tensor, components: int) -> Tensor:
    """Embeddings (n, channels) -> their first principal components with unit variance, float64 (n,
    components), or fewer if the embeddings have fewer dimensions."""
    centred = activations - activations.mean(0)
    left, deviations, _ = torch.linalg.svd(centred, full_matrices=False)
    count = min(components, int((deviations > NEGLIGIBLE * deviations.amax()).sum()))
    whitened: Tensor = left[:, :count] * len(left) ** 0.5
    return whitened


def two_means(points: Tensor, random: RandomState) -> tuple[Tensor, Tensor]:
    """(True in the smaller of two clusters, bool (n,); the silhouettes, float64 (n,)) of points
    (n, components)."""
    # Not at the top of the file: importing it takes a second, and every run imports all defenses.
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_samples

    # The order of summation depends on the number of threads.
    with threadpool_limits(1):
        clusters = KMeans(2, n_init=STARTS, random_state=random).fit_predict(points.numpy())
        silhouettes = silhouette_samples(points.numpy(), clusters)
    found = torch.from_numpy(clusters).long()
    return found == found.bincount().argmin(), torch.from_numpy(silhouettes)
