"""Square images of 8 bits with a caption each. An item is the image; its caption lies beside it in the shard.

What is trained on images is trained on these as it is: captions are read by `Dataset.captions` where they are wanted.
"""

from scrimp_trainers.data.modalities import images
from scrimp_trainers.data.modalities.images import ImageModality


class CaptionedModality(ImageModality):
    """Captioned images of one size."""


def build(*, size: int, channels: int) -> CaptionedModality:
    """Return the modality of captioned images of this size; raises as `images.build` does."""
    plain = images.build(size=size, channels=channels)
    return CaptionedModality(plain.size, plain.channels)
