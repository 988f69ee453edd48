"""Writes the polygons of Cityscapes' eight classes of objects as COCO files, one a split.

    python tools/cityscapes/convert_cityscapes_to_coco.py --datadir datasets/cityscapes

writes datasets/cityscapes/annotations/instancesonly_filtered_gtFine_{train,val}.json, which the names
cityscapes_fine_instanceonly_seg_*_cocostyle of the catalog mean. The files name images below `leftImg8bit`, where the catalog says
`images`: `ln -s leftImg8bit datasets/cityscapes/images`.
"""

import argparse
import json
import sys
from pathlib import Path

# A checkout works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from maskrcnn_bench.data.datasets.cityscapes import annotated, convert_to_coco  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datadir", required=True, type=Path, help="folder with gtFine and leftImg8bit")
    parser.add_argument("--outdir", type=Path, help="where the files go; default DATADIR/annotations")
    parser.add_argument("--splits", nargs="+", default=["train", "val"])
    parser.add_argument("--mode", default="poly", choices=("poly", "mask"), help="mask leaves out what later polygons cover")
    args = parser.parse_args()
    outdir = args.outdir or args.datadir / "annotations"
    outdir.mkdir(parents=True, exist_ok=True)
    there = [split for split in args.splits if annotated(args.datadir / "gtFine" / split, args.mode)]
    if not there:
        parser.error(f"no annotations {args.datadir}/gtFine/SPLIT/CITY/*_polygons.json of {' or '.join(args.splits)}")
    for split in there:
        content, faults = convert_to_coco(args.datadir, split, args.mode)
        path = outdir / f"instancesonly_filtered_gtFine_{split}.json"
        path.write_text(json.dumps(content))
        print(*faults, f"{path}: {len(content['images'])} images, {len(content['annotations'])} objects", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
