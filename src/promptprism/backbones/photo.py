"""The shipped model for photos: a frozen EfficientNet-Lite0 as the stem of a small ViT, and a text tower.

The class token starts as a projection of what the stem itself would have pooled, so nothing of its quality
is lost; the blocks behind it, where prompts live, add to it. `tools/pretrain_photo.py` made the weights.
"""

import json
from pathlib import Path
from typing import Any, cast

import torch
from open_clip import SimpleTokenizer
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

FOLDER = Path(__file__).with_name("photo")
MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3

# EfficientNet-Lite0's stages: repeats, kernel, stride, expansion, channels; in all 1/32 of the side.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STRIDE, _CHANNELS, _POOLED = 32, 320, 1280


class _Convolution(nn.Conv2d):
    """A convolution that holds its batch norm, with TensorFlow's padding (less above than below)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__(
            inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups
        )
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', H / stride, W / stride]."""
        if self.stride[0] == 2:
            kernel = self.kernel_size[0]
            x = F.pad(x, ((kernel - 2) // 2, (kernel - 1) // 2) * 2)
        x = super().forward(x)
        return F.relu6(x) if self.act else x


class _Residual(nn.Module):
    """An inverted residual: widen, convolve each channel, narrow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.convolutions = nn.Sequential(
            *([_Convolution(inputs, hidden)] if expansion > 1 else []),
            _Convolution(hidden, hidden, kernel, stride, groups=hidden),
            _Convolution(hidden, outputs, act=False),
        )
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', H / stride, W / stride]."""
        out: Tensor = self.convolutions(x)
        return x + out if self.skip else out


class LiteTrunk(nn.Module):
    """EfficientNet-Lite0 without its classifier, batch norms folded into the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_Convolution(3, 32, 3, 2)]
        channels = 32
        for repeats, kernel, stride, expansion, outputs in _STAGES:
            for place in range(repeats):
                layers.append(_Residual(channels, outputs, kernel, 1 if place else stride, expansion))
                channels = outputs
        self.body = nn.Sequential(*layers)
        self.head = _Convolution(_CHANNELS, _POOLED)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [N, 3, H, W] to the last map [N, 320, H / 32, W / 32] and pooled features [N, 1280]."""
        last = self.body(images)
        return last, self.head(last).mean((2, 3))


# Images in the trunk at a time on a CPU, where what a layer gives the next then stays in the core's caches:
# 4 are 1.8 times as fast as 64.
_AT_ONCE = 4


class PhotoVision(nn.Module):
    """The vision tower: `read(blocks(stem(images)))`; prompts are appended to what `stem` gives.

    Args:
        image_size: side of the square images, pixels; a multiple of 32.
        width: of the tokens, Dv.
        layers: number of blocks.
        heads: of each block.
        mlp_ratio: width of the blocks' MLP by that of the tokens.
        output_dim: size of the common space, D.

    Attributes:
        trunk: the frozen convolutional network.
        blocks: open_clip's pre-norm blocks.
        tokens: number of tokens that `stem` gives, the class token included, S.
    """

    def __init__(
        self, *, image_size: int, width: int, layers: int, heads: int, mlp_ratio: float, output_dim: int
    ) -> None:
        super().__init__()
        if image_size % _STRIDE:
            raise ValueError(f"image_size={image_size} is no multiple of {_STRIDE}: give one, such as 224")
        self.image_size, self.width, self.layers, self.heads = image_size, width, layers, heads
        self.output_dim = output_dim
        self.preprocess_cfg = {"mean": MEAN, "std": STD}
        self.tokens = 1 + (image_size // _STRIDE) ** 2
        self.trunk = LiteTrunk()
        self.class_projection = nn.Linear(_POOLED, width)
        self.token_projection = nn.Linear(_CHANNELS, width)
        self.positional_embedding = nn.Parameter(torch.zeros(self.tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            ResidualAttentionBlock(width, heads, mlp_ratio=mlp_ratio) for _ in range(layers)
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.eye(width, output_dim))

    def stem(self, images: Tensor) -> Tensor:
        """Tokens [N, S, Dv], float32, of images [N, 3, H, W]: the class token, then the map row by row."""
        convolution = self.trunk.head.weight
        images = images.to(convolution.dtype, memory_format=torch.channels_last)
        small = images.device.type == "cpu" and not torch.onnx.is_in_onnx_export()
        # A split in an exported graph would have the size of the example.
        parts = [self.trunk(part) for part in (torch.split(images, _AT_ONCE) if small else (images,))]
        last, pooled = (torch.cat(each) for each in zip(*parts, strict=True))
        return self.embed(last.flatten(2).transpose(1, 2), pooled)

    def embed(self, last: Tensor, pooled: Tensor) -> Tensor:
        """Tokens [N, S, Dv], float32, of the trunk's last map [N, S - 1, 320] and pooled features [N, 1280].

        The trunk is frozen: what it gives may be kept, and the tokens made of it.
        """
        kind = self.class_projection.weight.dtype
        tokens = [self.class_projection(pooled.to(kind))[:, None], self.token_projection(last.to(kind))]
        return cast(Tensor, self.ln_pre(torch.cat(tokens, 1).float() + self.positional_embedding))

    def read(self, x: Tensor) -> Tensor:
        """Features [..., D], not normalised, of class tokens [..., Dv] behind the last block."""
        return cast(Tensor, self.ln_post(x).to(self.proj.dtype) @ self.proj)

    def forward(self, images: Tensor) -> Tensor:
        """Features [N, D], not normalised, of images [N, 3, H, W] normalised with `MEAN` and `STD`."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.read(x[:, 0])


class PhotoCLIP(nn.Module):
    """The two towers and the factor from cosine to logit.

    Args:
        config: `{"embed_dim": D, "vision": {...}, "text": {...}}`, as in `photo/config.json`.
    """

    few_names = True

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.visual = PhotoVision(output_dim=config["embed_dim"], **config["vision"])
        self.text = TextTransformer(output_dim=config["embed_dim"], **config["text"])
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Features [N, D] of images [N, 3, H, W]."""
        features: Tensor = self.visual(images)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Features [N, D] of tokens [N, L]."""
        features: Tensor = self.text(tokens)
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit features of images and texts, [N, D] each, and the logit scale."""
        return self.encode_image(images, True), self.encode_text(tokens, True), self.logit_scale.exp()


def photo_config(folder: Path = FOLDER) -> dict[str, Any]:
    """The sizes of the shipped model."""
    return cast(dict[str, Any], json.loads((folder / "config.json").read_text()))


def photo_tokenizer(folder: Path = FOLDER) -> SimpleTokenizer:
    """CLIP's tokenizer with the first of its merges."""
    context = photo_config(folder)["text"]["context_length"]
    return SimpleTokenizer(bpe_path=str(folder / "bpe.txt.gz"), context_length=context)


def load_photo(folder: Path = FOLDER) -> PhotoCLIP:
    """The shipped model, float32, in evaluation mode."""
    model = PhotoCLIP(photo_config(folder))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.visual.trunk.to(memory_format=torch.channels_last)
    return model.eval()
