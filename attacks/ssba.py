"""SSBA (sample-specific, ISSBA), Li, Li, Wu, Li, He and Lyu, ICCV 2021, arXiv:2012.03816.

An encoder hides a string of bits b in each image and a decoder reads it: x' = x + E(x, b), so that
the trigger differs between images. Both are those of StegaStamp (Tancik, Mildenhall and Ng, CVPR
2020, arXiv:1904.05343) and learn on the clean training set to keep the image and to read the bits:
L = image loss + CE(D(x'), b). All poisoned images carry the same string, which stands for the
target label.

Differs: the authors publish a trained encoder but not its training, and another suite ships images
for CIFAR-10 that hide a single bit; here the encoder is trained for every data set and hides 32
bits, and each epoch draws new strings for all images. StegaStamp hides 100 bits in 400 x 400
pixels. Its perceptual loss (LPIPS, which needs another trained network) and its critic are left
out, and so are its simulated prints and photographs, as in the attack's paper, and the spatial
transformer by which its decoder undoes their perspective. The image loss is the squared residual
beyond that of a fixed PSNR: a plain L2 loss weakens the trigger for as long as training lasts. It
sets in when the decoder reads 95 % of the bits, or after half of the epochs, and grows linearly, as
StegaStamp's. The decoder reads images that are clipped and rounded to grey levels. The networks are
smaller, and as deep as the image's sides allow. Residuals depend on the image less than the name
says: on digits, the cosine of two is 0.9. The record has it.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    interpolate,
    normalize,
    pad,
    relu,
)

from bdbench.attacks import Attack, Poisoned, dirty_count, dirty_label, prepared, register
from bdbench.models import (
    Batch,
    ImageSet,
    Recipe,
    State,
    TrainingContext,
    at_least,
    loop,
    observer,
    portion,
    require,
    resumable,
)
from bdbench.models.rng import global_seed, stream

CHUNK = 16
"""Images per forward pass of the trained encoder. Fixed: rounding depends on the batch size."""
HELD_OUT = 0.1
"""Share of the training set on which the attacker evaluates the trigger; not trained on."""
READ = 0.95
"""Share of the bits that the decoder reads before the image loss sets in."""
IMAGE_WEIGHT = 0.1
"""Largest weight of the image loss."""
LEARNING_RATE = 1e-3
"""Of Adam."""
WIDTH = 16
"""Channels of both networks at full resolution; twice and four times as many below."""
SMALLEST = 4
"""Pixels of the shorter side at the lowest resolution."""
HALVINGS = 4
"""At most, in the encoder (StegaStamp)."""


@dataclass(frozen=True)
class TriggerEncoder:
    """A trained trigger.

    network: the encoder, in eval mode and float64, so that grey levels do not depend on the number
        of threads
    facts: about images that it was not trained on, see `evaluate`
    """

    network: Encoder
    facts: dict[str, float]


@register("ssba", title="SSBA")
@dataclass(frozen=True)
class SSBA(Attack):
    """
    poisoning_rate: share of the training set, in (0, 1] (paper: 0.1)
    target: the label the trigger causes; its string of bits is drawn from it
    bits: length of the string, from 1 to 256 (our choice: 32; StegaStamp: 100 in larger images)
    psnr: strength of the residual before clipping, dB, in (0, 60]; lower is stronger (our choice)
    encoder_epochs: epochs of encoder and decoder, in a recipe of 100 epochs, at least 1 (our
        choice: 50, as many passes as plain training)
    encoder: the trained trigger, once prepared
    """

    bits: int = 32
    psnr: float = 28.0
    encoder_epochs: int = 50
    encoder: TriggerEncoder | None = prepared()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.bits <= 256, f"bits must be from 1 to 256, got {self.bits}")
        require(0 < self.psnr <= 60, f"psnr must be in (0, 60], got {self.psnr}")
        at_least(1, encoder_epochs=self.encoder_epochs)

    @property
    def trains(self) -> bool:
        return True

    def cost(self, recipe: Recipe, images: int) -> float:
        # Forward and backward passes of two networks; then one of the encoder, two of the decoder.
        return 6 * (1 - HELD_OUT) * recipe.scaled(self.encoder_epochs) + 3 * HELD_OUT

    def message(self) -> Tensor:
        """float32 (bits,): the string of the target label, zeros and ones."""
        return torch.randint(2, (self.bits,), generator=stream(self.target, "ssba")).float()

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Self:
        require(
            min(clean.size) >= 2 * SMALLEST,
            f"ssba needs images of at least {2 * SMALLEST} pixels a side, got {clean.size}",
        )
        dirty_count(self, clean)
        with global_seed(context.seed, "weights", "ssba"):
            encoder, decoder = Encoder(self.bits, *clean.size), Decoder(self.bits, *clean.size)
        encoder, decoder = encoder.to(clean.device), decoder.to(clean.device)
        order = torch.randperm(len(clean), generator=context.rng("held out")).to(clean.device)
        count = max(1, portion(HELD_OUT, len(clean)))
        train_networks(encoder, decoder, clean[order[count:]], self, context)
        precise = deepcopy(encoder).double().eval().requires_grad_(False)
        ready = replace(self, encoder=TriggerEncoder(precise, {}))
        facts = evaluate(ready, decoder, clean.images[order[:count]])
        return replace(self, encoder=TriggerEncoder(precise, facts))

    @torch.inference_mode()
    def trigger(self, images: Tensor) -> Tensor:
        if self.encoder is None:
            raise RuntimeError("ssba must be prepared before it can stamp")
        message = self.message().double().to(images.device).expand(CHUNK, -1)
        parts = []
        for part in images.split(CHUNK):
            inputs = pad(part, (0, 0, 0, 0, 0, 0, 0, CHUNK - len(part))).double() / 255
            encoded = inputs + self.encoder.network(inputs, message)
            parts.append((encoded[: len(part)].clamp(0, 1) * 255).round().to(torch.uint8))
        return torch.cat(parts).contiguous() if parts else images.clone()

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        poisoned = dirty_label(self, clean, rng)
        return replace(poisoned, facts=self.encoder.facts if self.encoder else {})


class Encoder(nn.Module):
    """E: images in [0, 1] (n, 3, height, width) and strings (n, bits) of zeros and ones ->
    residuals of the images' shape.

    A linear layer turns a string into three maps of half the resolution, which are enlarged and
    join the image; a U-Net without normalisation follows (StegaStamp, section 3).
    """

    def __init__(self, bits: int, height: int, width: int) -> None:
        super().__init__()
        self.grid = (3, (height + 1) // 2, (width + 1) // 2)
        self.spread = nn.Linear(bits, self.grid[0] * self.grid[1] * self.grid[2])
        side, widths = min(height, width), [WIDTH]
        while side >= 2 * SMALLEST and len(widths) <= HALVINGS:
            side, widths = (side + 1) // 2, [*widths, min(4 * WIDTH, 2 * widths[-1])]
        steps = list(pairwise(widths))
        self.first = nn.Conv2d(6, WIDTH, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in steps)
        self.up = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in reversed(steps))
        self.join = nn.ModuleList(nn.Conv2d(2 * a, a, 3, padding=1) for a, _ in reversed(steps))
        self.last = nn.Conv2d(WIDTH + 6, 3, 1)

    def forward(self, images: Tensor, strings: Tensor) -> Tensor:
        spread = relu(self.spread(strings - 0.5)).view(len(images), *self.grid)
        inputs = torch.cat((interpolate(spread, images.shape[2:]), images - 0.5), 1)
        skipped = [relu(self.first(inputs))]
        for layer in self.down:
            skipped.append(relu(layer(skipped[-1])))
        maps = skipped.pop()
        for up, join in zip(self.up, self.join, strict=True):
            skip = skipped.pop()
            maps = relu(up(interpolate(maps, skip.shape[2:])))
            maps = relu(join(torch.cat((skip, maps), 1)))
        return counted(self.last(torch.cat((inputs, maps), 1)))


class Decoder(nn.Sequential):
    """D: images in [0, 1] (n, 3, height, width) -> a logit for each bit, (n, bits)."""

    def __init__(self, bits: int, height: int, width: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, padding=1), nn.ReLU()]
        channels = WIDTH
        while min(height, width) >= 2 * SMALLEST:
            after = min(4 * WIDTH, 2 * channels)
            layers += [nn.Conv2d(channels, after, 3, 2, 1), nn.ReLU()]
            height, width, channels = (height + 1) // 2, (width + 1) // 2, after
        features = channels * height * width
        super().__init__(
            *layers, nn.Flatten(), nn.Linear(features, 256), nn.ReLU(), nn.Linear(256, bits)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits = images - 0.5
        for layer in self:
            logits = layer(logits)
        return counted(logits)


def counted(outputs: Tensor) -> Tensor:
    """The outputs of a network, reported to the observer, in at least single precision."""
    observer.count_passes(len(outputs), outputs)
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def written(encoded: Tensor) -> Tensor:
    """Encoded images as they are written: clipped to [0, 1] and rounded to grey levels. The
    gradient is that of clipping alone."""
    clipped = encoded.clamp(0, 1)
    return clipped + ((clipped * 255).round() / 255 - clipped).detach()


def image_loss(residual: Tensor, psnr: float) -> Tensor:
    """The mean, over residuals (n, 3, height, width), of the mean square in units of that which
    belongs to `psnr`, beyond 1."""
    allowed = 10 ** (-psnr / 10)
    return relu(residual.square().mean((1, 2, 3)) / allowed - 1).mean()


def train_networks(
    encoder: Encoder,
    decoder: Decoder,
    clean: ImageSet,
    settings: SSBA,
    context: TrainingContext,
) -> None:
    """Train both, on the images as they are: the encoder sees no augmented image later."""
    recipe = replace(context.recipe.still, epochs=1, drops=())
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    autocast = torch.autocast(clean.device.type, torch.bfloat16, recipe.precision == "bf16")
    strings = torch.zeros(len(clean), settings.bits, device=clean.device)
    weight, read = (torch.zeros((), device=clean.device) for _ in range(2))

    def step(batch: Batch) -> None:
        hidden = strings[batch.index]
        with autocast:
            residual = encoder(batch.images, hidden)
            logits = decoder(written(batch.images + residual))
        loss = binary_cross_entropy_with_logits(logits, hidden)
        loss = loss + weight * image_loss(residual, settings.psnr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        read.add_(((logits > 0) == (hidden > 0.5)).sum())

    epochs = context.epochs(settings.encoder_epochs)
    started = {"epoch": min((epochs + 1) // 2, epochs - 1)}
    order, draws = context.rng("ssba"), context.rng("strings")
    state: State = {
        **{"encoder": encoder, "decoder": decoder, "optimizer": optimizer},
        **{"started": started, "order": order, "strings": draws},
    }
    for epoch in resumable(epochs, state):
        strings.copy_(torch.randint(2, strings.shape, generator=draws))
        weight.fill_(image_weight(epoch, started["epoch"], epochs))
        read.zero_()
        loop(step, clean, recipe=recipe, rng=order, state=state)
        if float(read) >= READ * strings.numel():
            started["epoch"] = min(started["epoch"], epoch + 1)
    decoder.eval()


def image_weight(epoch: int, start: int, epochs: int) -> float:
    """Zero before epoch `start`; then it grows linearly to its maximum in a quarter of `epochs`."""
    grown = (epoch + 1 - start) / max(1.0, epochs / 4)
    return IMAGE_WEIGHT * min(max(grown, 0.0), 1.0)


@torch.inference_mode()
def evaluate(attack: SSBA, decoder: Decoder, images: Tensor) -> dict[str, float]:
    """Of the finished trigger, in grey levels as they are written, on uint8 (n, 3, height, width):
    the share of the message's bits that the decoder reads with the trigger and without, the mean
    absolute residual in grey levels, the mean PSNR in dB, and the mean cosine of the residuals of
    two images, which is 1 if all images get the same trigger."""
    message = attack.message().to(images.device) > 0.5
    marked = attack.trigger(images)
    with_trigger, without = (
        torch.cat([decoder(part / 255) > 0 for part in many.split(CHUNK)]) == message
        for many in (marked, images)
    )
    residual = (marked.double() - images).flatten(1)
    count, total = len(images), normalize(residual).sum(0).square().sum()
    facts = {
        "bit_accuracy": with_trigger.double().mean(),
        "bit_accuracy_without": without.double().mean(),
        "mean_residual": residual.abs().mean(),
        "psnr": (10 * (255**2 / residual.square().mean(1)).log10()).mean(),
        "residual_cosine": (total - count) / (count * (count - 1)),
    }
    return {name: round(float(value), 6) for name, value in facts.items()}
