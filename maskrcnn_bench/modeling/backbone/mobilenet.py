"""MobileNetV3-Large (Howard et al. 2019) as torchvision builds it, cut where its detectors read it."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large

from ...layers.blocks import FrozenBatchNorm2d, NormFactory

# A classifier's norms add 1e-3 to the variance and follow it slowly; torchvision freezes them, for its detectors, with 1e-5.
NORMS: dict[str, NormFactory] = {
    "FrozenBN": partial(FrozenBatchNorm2d, eps=1e-5),
    "BN": partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01),
    "SyncBN": partial(nn.SyncBatchNorm, eps=1e-3, momentum=0.01),
}


class MobileNetV3Body(nn.Module):
    """Two maps at stride 32: after the last stage but one, and after the final convolution.

    The layers have the numbers of torchvision's `mobilenet_v3_large().features`.

    Args:
        norm: a key of NORMS.
        freeze_at: the first layer and the stages before this number are not trained; a stage begins where the map is halved. 0 trains all.
    Raises:
        ValueError: for a norm that this trunk does not have.
    """

    def __init__(self, norm: str = "FrozenBN", freeze_at: int = 0):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"MODEL.RESNETS.NORM: MobileNetV3 has one of {sorted(NORMS)}, got {norm!r}")
        self.features = mobilenet_v3_large(norm_layer=NORMS[norm]).features
        starts = [0, *(i for i, layer in enumerate(self.features) if getattr(layer, "_is_cn", False)), len(self.features) - 1]
        self.returned = starts[-2:]
        self.out_channels_of_stages = [self.features[i].out_channels for i in self.returned]
        end = starts[freeze_at] if freeze_at < len(starts) else len(self.features)
        self.features[:end].requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [N, 3, H, W] to the maps [N, 160, H / 32, W / 32] and [N, 960, H / 32, W / 32]."""
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.returned:
                maps.append(x)
        return maps
