"""Reading and writing the reference projects' checkpoints, one file an ecosystem."""

from .convert import convert, load_weights, recognise
from .detectron2 import to_detectron2
from .load import Report, load_into
from .names import Loaded
from .torchvision import to_torchvision

__all__ = ["Loaded", "Report", "convert", "load_into", "load_weights", "recognise", "to_detectron2", "to_torchvision"]
