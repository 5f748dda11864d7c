"""What a decoder is: the partial latent of any prefix -> a whole image.

A kind of decoder is one file here with one class, and one line in the table of kinds. A tokenizer
holds decoders by name, all of the same codes: training one further leaves the codes as they are.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.decoder_config import DecoderConfig


class Decoder(nn.Module, ABC):
    """Latents f_k (B, D) and prefix lengths (B,) -> images (B, 3, H, W), about in [-1, 1].

    Attributes:
        config: Of this kind.
        noise_size: How many normal numbers a picture is drawn from; 0: the codes decide it alone.
        class_names: The classes that a decoder that draws can be told.
    """

    noise_size = 0
    class_names: tuple[str, ...] = ()

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(
        self,
        latents: Tensor,
        prefix_lengths: Tensor,
        noise: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Decode.

        Args:
            latents: f_k, float32 (B, D), whatever the decoder's own type is.
            prefix_lengths: k of each, int64 (B,) in 1..N: a blurred latent of few codes asks for
                another picture than a sharp one of many. A decoder that draws knows 0, too.
            noise: Of a decoder that draws what the codes leave unsaid: normal numbers, float32
                (B, noise_size). None is no noise.
            labels: Of such a decoder: the class of each, int64 (B,). None is no class.
        """

    def loss(
        self, latents: Tensor, prefix_lengths: Tensor, images: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of decoding to these images (B, 3, H, W), and scalars to be logged.

        By default the squared error, for which the best picture is the mean of all that fit.
        """
        mse = F.mse_loss(self(latents, prefix_lengths).float(), images)
        return mse, {"mse": mse.detach()}

    def features(self, latents: Tensor, prefix_lengths: Tensor) -> Tensor:
        """What the latents mean to the decoder, a coarse map: (B, C, h, w); not all kinds have it.

        Raises:
            NotImplementedError: This kind has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no features")

    def init_from_patches(self, components: Tensor, scale: Tensor, colours: Tensor) -> None:
        """Start from a linear picture of the latent, if this kind does.

        Args:
            components: float32 (C, 3, p, p): what each channel of a place means in pixels.
            scale: float32 (): their deviation.
            colours: float32 (3,): the mean image.
        """

    def init_from_faithful(self, faithful: "Decoder") -> None:
        """Start from the tokenizer's faithful decoder, which is trained, if this kind does."""
