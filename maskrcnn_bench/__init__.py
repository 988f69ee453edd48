"""The R-CNN family on PyTorch: Faster, Mask and Keypoint R-CNN, RPN and RetinaNet in one library."""

__version__ = "0.1.0"
