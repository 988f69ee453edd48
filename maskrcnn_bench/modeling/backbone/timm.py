"""Any convolutional trunk of timm, by its name; https://github.com/huggingface/pytorch-image-models.

timm is needed by these models only, so it is imported when one is built. Nothing is downloaded: weights come from a file.
"""

from __future__ import annotations

from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)


class TimmBody(nn.Module):
    """The features of a trunk at strides 4, 8, 16 and 32.

    Args:
        name: timm's name of the model.
        weight: a file with timm's weights for it; "" draws them at random.
        freeze_at: what lies before the first of these maps (1), and the parts up to map `freeze_at - 1`, are not trained; 0 trains all.
    Raises:
        ImportError: when timm is not installed.
        ValueError: for an unknown name, or a trunk that has no such maps.
    """

    def __init__(self, name: str, weight: str = "", freeze_at: int = 0):
        super().__init__()
        self.model = _create(name, weight)
        strides = self.model.feature_info.reduction()
        self.out_channels_of_stages = self.model.feature_info.channels()
        if tuple(strides) != STRIDES:
            raise ValueError(f"timm:{name}: an FPN needs maps at strides {STRIDES}, this trunk has them at {tuple(strides)}")
        self.frozen = self._parts(name, freeze_at)
        for part in self.frozen:
            part.requires_grad_(False)

    def _parts(self, name: str, freeze_at: int) -> list[nn.Module]:
        """The children that stay fixed, in order."""
        if not freeze_at:
            return []
        children = dict(self.model.named_children())
        stages = [module.replace(".", "_") for module in self.model.feature_info.module_name()]
        if not set(stages) <= set(children):
            raise ValueError(f"timm:{name} is not built in stages that can be frozen; set MODEL.BACKBONE.FREEZE_CONV_BODY_AT 0")
        stem = list(children).index(stages[0])
        last = stem if freeze_at == 1 else list(children).index(stages[min(freeze_at, 5) - 2]) + 1
        return list(children.values())[:last]

    def train(self, mode: bool = True) -> TimmBody:
        """Frozen parts keep their norms' statistics too."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [N, 3, H, W] to four maps, finest first."""
        return self.model(x)


def _create(name: str, weight: str) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ImportError(f"MODEL.BACKBONE.CONV_BODY timm:{name} needs timm: pip install timm") from None
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(
            f"MODEL.BACKBONE.CONV_BODY: timm {timm.__version__} has no model {name!r}; it has {near or timm.list_models()[:5]}, ..."
        )
    # Some trunks have a map at stride 2 before, which detectors do not use.
    info = timm.create_model(name, pretrained=False, features_only=True).feature_info
    indices = [i for i, stride in enumerate(info.reduction()) if stride in STRIDES]
    options = {"pretrained": True, "pretrained_cfg_overlay": {"file": weight}} if weight else {"pretrained": False}
    return timm.create_model(name, features_only=True, out_indices=indices, **options)
