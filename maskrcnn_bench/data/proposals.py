"""Proposals that are given: from files to the images of a data set, and into a batch of one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch
from maskrcnn_bench.utils.proposal_files import Proposals

NAMED = 3  # images that a message names


class GivenProposals(Dataset):
    """The proposals of each image of a data set, best first: BoxLists with `objectness`, in pixels of the original images.

    Images are found by their id, `get_img_info(i)["id"]`, so that the order of the file and further images in it do not matter.

    Args:
        dataset: whose images.
        found: by image id, as `read_proposals` answers them.
        source: the file, for messages.
        pixel: the pixel rule of the boxes.
    Raises:
        ValueError: when an image has no entry, or is of another size than the file says.
    """

    def __init__(self, dataset: Dataset, found: Mapping[str, Proposals], source: str, pixel: int):
        infos = [dataset.get_img_info(i) for i in range(len(dataset))]
        missing = [f"{info.get('file_name', 'image')} (id {info.get('id')})" for info in infos if str(info.get("id")) not in found]
        if missing:
            raise ValueError(
                f"{source}: no proposals for {len(missing)} of {len(infos)} images: {', '.join(missing[:NAMED])}"
                f"{', ...' * (len(missing) > NAMED)}. It has other images, such as id {next(iter(found), None)}; "
                "test the RPN on this data set (DATASETS.TEST), or name its own file"
            )
        self.sizes = [(info["width"], info["height"]) for info in infos]
        self.found = [found[str(info["id"])] for info in infos]
        self.pixel = pixel
        for info, size, proposals in zip(infos, self.sizes, self.found, strict=True):
            if proposals.size not in (None, size):
                there, here = (f"{width} x {height}" for width, height in (proposals.size, size))
                raise ValueError(
                    f"{source}: image id {info['id']} is {there} there, but {info.get('file_name', 'it')} of the data set is {here}; "
                    "these are proposals for other images"
                )

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, i: int) -> BoxList:
        order = np.argsort(-self.found[i].objectness, kind="stable")
        out = BoxList(torch.from_numpy(self.found[i].boxes[order]), self.sizes[i], pixel=self.pixel)
        out.add_field("objectness", torch.from_numpy(self.found[i].objectness[order]))
        return out


class ProposalSlots:
    """Proposals of several images as one batch, whose shape does not depend on them.

    Args:
        slots: of an image; the best proposals that are large enough fill them.
        min_size: least width and height, pixels.
        drop_empty: whether boxes of exactly `min_size` go too.
    """

    def __init__(self, slots: int, min_size: float, drop_empty: bool):
        self.slots = slots
        self.min_size = min_size
        self.drop_empty = drop_empty

    def __call__(self, proposals: Sequence[BoxList], sizes: Sequence[tuple[int, int]]) -> BoxListBatch:
        """Proposals, best first, on images of (width, height) `sizes`, to which they are resized and clipped."""
        return BoxListBatch.pad([self._best(p.resize(size)) for p, size in zip(proposals, sizes, strict=True)], slots=self.slots)

    def _best(self, proposals: BoxList) -> BoxList:
        clipped = proposals.copy_with_fields("objectness").clip_to_image(remove_empty=False)
        side = clipped.bbox[:, 2:] - clipped.bbox[:, :2] + clipped.pixel
        large = (side > self.min_size if self.drop_empty else side >= self.min_size).all(dim=1)
        return clipped[large][: self.slots]
