"""All that a classifier says of images, from their pixels, as one module: what is exported, and served."""

import torch
from torch import Tensor, nn

from promptprism.methods import Classifier

#: What every classifier gives, and what those with opinions give besides, in the order of `Outputs`.
PLAIN = ("logits", "probability")
OPINIONS = ("belief", "uncertainty", "template_probability", "template_belief", "template_uncertainty")


class Outputs(nn.Module):
    """Logits, probabilities and opinions of pixels.

    Args:
        classifier: for K classes; its weights stay where they are.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier, backbone = classifier, classifier.backbone
        self.names = PLAIN + (OPINIONS if classifier.evidential else ())
        mean, std = (torch.tensor(each, dtype=torch.float64) for each in (backbone.mean, backbone.std))
        # As `make_view` has it.
        self.scale = (1 / (255 * std)).float().view(3, 1, 1).to(backbone.device)
        self.shift = (-mean / std).float().view(3, 1, 1).to(backbone.device)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Give `names` in order for pixels [B, 3, H, W] of 0..255: logits [M, B, K], probability [B, K].

        Of opinions belief [B, K] and uncertainty [B], fused; and of each template probability [M, B, K],
        belief [M, B, K] and uncertainty [M, B].
        """
        logits = self.classifier.logits((pixels * self.scale + self.shift).unsqueeze(0))
        found = logits, self.classifier.probabilities(logits)
        if not self.classifier.evidential:
            return found
        each, fused = self.classifier.opinions(logits)
        return *found, fused.belief, fused.uncertainty, each.probability, each.belief, each.uncertainty
