"""Image processor of the whole family, torchvision backend: resizes on the device of the input or of `device=`."""

import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import PILImageResampling, SizeDict, torch_pil_interpolation_mapping

from .image_processing_pil_vitf import VitfImageProcessorKwargs, VitfImageProcessorMixin, resize_bands

# What torchvision computes as Pillow does, on every device. Pillow does the others: torchvision breaks the ties of
# nearest in another way, and has the rest on no device or on some.
_OF_TORCHVISION = (PILImageResampling.BILINEAR, PILImageResampling.BICUBIC)


class VitfImageProcessor(VitfImageProcessorMixin, TorchvisionBackend):
    r"""
    The image processor of the family. Fields, input and errors are those of [`VitfImageProcessorPil`]; torchvision
    resizes where `resample` is bilinear or bicubic, and Pillow elsewhere. `device` says where images are processed.

    torchvision differs from Pillow by rounding. 8-bit samples differ by 1/255, and by 2/255 in about one sample of
    100,000 enlarged by bicubic interpolation; floating-point samples from 0 to 1 differ by about 1e-5.
    """

    # transformers looks for the class of the keyword arguments in the processor's own module
    valid_kwargs = VitfImageProcessorKwargs

    def resize(self, image: torch.Tensor, size: SizeDict, resample=None, **kwargs) -> torch.Tensor:
        resample = torch_pil_interpolation_mapping.get(resample, resample)
        if resample is None or resample in _OF_TORCHVISION:
            return super().resize(image, size, resample=resample, **kwargs)
        resized = resize_bands(image.cpu().numpy(), (size.height, size.width), resample)
        return torch.from_numpy(resized).to(image.device)


__all__ = ["VitfImageProcessor"]
