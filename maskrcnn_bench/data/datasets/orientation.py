"""The turn that the EXIF data of a photograph ask for: some cameras store what they see, and how they were held."""

from __future__ import annotations

from PIL import Image

EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where Pillow finds the orientation again.
_CARRIERS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
# Tags of TIFF: width and height as they are stored.
WIDTH, HEIGHT = 256, 257


def turned(image: Image.Image, size: tuple[int, int] | None, on_exif: str) -> Image.Image:
    """A decoded image in the frame of its annotations; `size` and `on_exif` as `photo.read_photo` has them."""
    turn = None if on_exif == "ignore" else _TURNS.get(image.getexif().get(EXIF_ORIENTATION, 1))
    if turn is None:
        return image
    # Pillow's own function writes all tags anew, and fails where one of them has a wrong type.
    upright = image.transpose(turn)
    upright.info = {name: value for name, value in upright.info.items() if name not in _CARRIERS}
    # A square picture, or one only mirrored or upside down, has the same size both ways: it is turned.
    unturned = on_exif == "auto" and size and upright.size != tuple(size) and image.size == tuple(size)
    return image if unturned else upright


def turned_size(image: Image.Image, on_exif: str) -> tuple[int, int]:
    """(width, height) that an image has once it is decoded and `turned`, without decoding it, pixels."""
    width, height = image.size
    swapped = image.getexif().get(EXIF_ORIENTATION, 1) in SIDEWAYS
    if image.format == "TIFF":
        # Pillow turns these whatever is asked for: some versions when they open a file, others when they decode it.
        swapped = swapped and image.size == (image.tag_v2[WIDTH], image.tag_v2[HEIGHT])
    elif on_exif == "ignore":
        swapped = False
    return (height, width) if swapped else (width, height)
