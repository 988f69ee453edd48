"""Fast R-CNN: regions that come with the images, in the place of a network that finds them."""

from __future__ import annotations

from torch import Tensor, nn

from ...structures.bounding_box import BoxListBatch
from ...structures.image_list import ImageList
from .rpn import append_objects


class GivenProposals(nn.Module):
    """Hands on the proposals of the images; called like the RPN."""

    def forward(
        self, images: ImageList, features: list[Tensor], targets: BoxListBatch | None = None, keys: Tensor | None = None
    ) -> tuple[BoxListBatch, dict[str, Tensor]]:
        """Proposals and no losses; with targets the ground truth is among the proposals.

        Raises:
            ValueError: when the images bring no proposals.
        """
        given = images.proposals
        if given is None:
            raise ValueError(
                "MODEL.LOAD_PROPOSALS is True, so the model finds no regions itself, but these images bring none. Loaders read them from "
                "DATASETS.PROPOSAL_FILES_TRAIN and PROPOSAL_FILES_TEST; own programs set ImageList.proposals; other pictures need a model "
                "with an RPN"
            )
        # A batch of its own: others add fields to it.
        proposals = BoxListBatch(given.boxes, given.valid, given.sizes, given.fields, pixel=given.pixel)
        return (proposals if targets is None else append_objects(proposals, targets)), {}
