"""Image processor of the whole family, torchvision backend: resizes on the device of the input or of `device=`."""

from transformers.image_processing_backends import TorchvisionBackend

from .image_processing_pil_vitf import VitfImageProcessorKwargs, VitfImageProcessorMixin


class VitfImageProcessor(VitfImageProcessorMixin, TorchvisionBackend):
    r"""
    The image processor of the family. Fields, input and errors are those of [`VitfImageProcessorPil`]; torchvision
    resizes, which differs from Pillow by rounding: 1/255, and 2/255 in about one sample of a million enlarged by bicubic
    interpolation. `device` says where images are processed.
    """

    # transformers looks for the class of the keyword arguments in the processor's own module
    valid_kwargs = VitfImageProcessorKwargs


__all__ = ["VitfImageProcessor"]
