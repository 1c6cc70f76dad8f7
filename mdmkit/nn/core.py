"""The innermost network of a nest: a U-Net that reads the text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .attention import TextLayer
from .blocks import ResBlock
from .frames import as_clips, as_rows
from .unet import Running, Text, UNet

__all__ = ["TextPath", "UNetCore"]


class TextPath(nn.Module):
    """Text features to what the network reads: projected, through self-attention layers, and pooled.

    cond (B, L, cond_dim), mask (B, L) bool or None. The pooled vector is the mean over the tokens that the
    mask leaves, zero where it leaves none; weights (B, L) multiply the tokens in it. Source: Gu et al. 2024
    (2310.15111), released networks.
    """

    def __init__(
        self,
        cond_dim: int,
        *,
        cond_width: int | None,
        layers: int,
        heads: int,
        pooled_dim: int | None,
        masked: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where = {"device": device, "dtype": dtype}
        self.cond_dim, self.masked = cond_dim, masked
        width = cond_width or cond_dim
        self.project = None if cond_width is None else nn.Linear(cond_dim, cond_width, **where)
        self.layers = nn.ModuleList(TextLayer(width, heads=heads, **where) for _ in range(layers))
        self.pool = None if pooled_dim is None else nn.Linear(width, pooled_dim, bias=False, **where)

    def forward(
        self, cond: Tensor, mask: Tensor | None, run: Running, weights: Tensor | None = None
    ) -> Text:
        x = cond if self.project is None else self.project(cond)
        # released networks that ignore the mask do so in the pooling only where they have layers of their own
        inside = mask if self.masked or not self.layers else None
        for layer in self.layers:
            x = run(layer, x, inside, run.attend)
        pooled = None
        if self.pool is not None:
            counted = x if weights is None else x * weights[..., None].to(x)
            if inside is None:
                pooled = counted.mean(1)
            else:
                kept = inside[..., None].to(x.dtype)
                pooled = (counted * kept).sum(1) / kept.sum(1).clamp(min=1)
            pooled = self.pool(pooled)
        return Text(x, mask, pooled)


class UNetCore(UNet):
    """Level 0 of a nest: a U-Net with cross-attention to the text, which it prepares for every level.

    channels, blocks (residual blocks), attention (attention layers behind each residual block; one at the
    lowest stage where not given): one entry a stage, high resolution to low; strides: between the stages, an
    int or (height, width) each, 2 where not given. extra_blocks: residual blocks behind those of a stage,
    without skips: what a network that is deepened gains. emb_dim: width of the time embedding, 4 *
    channels[0] where not given. middle: two more residual blocks with attention between them at the lowest
    stage. ffn: an MLP in each attention layer. cond_width: width that the text is projected to, as it
    comes where not given; text_layers: self-attention layers over the text; pooled_text: the mean of the
    text goes into the
    embedding; masked_cross_attention: padding is not looked at. micro_conditioning: numbers about the picture
    and their defaults. output_limit: predictions are squeezed into +-output_limit by tanh. self_conditioning:
    it is shown its own last estimate of the picture (Chen et al. 2022, 2208.04202). block makes residual
    blocks. temporal makes layers along time, temporal_layers of them behind each residual block
    of a stage, for clips (B, C, F, H, W) of `frames` frames, or of one, which are pictures; strides may then
    have frames in front.

    cond_dim: width of the text features, None: unconditional. Raises ValueError where the numbers do not fit.
    Source: Gu et al. 2024 (2310.15111), section 3.2 and the released networks.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (64, 128, 256),
        blocks: int | Sequence[int] = 2,
        attention: int | Sequence[int] | None = None,
        strides: Sequence[int | Sequence[int]] | None = None,
        extra_blocks: int | Sequence[int] = 0,
        in_channels: int = 3,
        emb_dim: int | None = None,
        heads: int = 8,
        norm_groups: int = 32,
        ffn: bool = True,
        middle: bool = True,
        cond_width: int | None = None,
        text_layers: int = 0,
        pooled_text: bool = True,
        masked_cross_attention: bool = True,
        micro_conditioning: Mapping[str, float] | None = None,
        output_limit: float | None = None,
        self_conditioning: bool = False,
        frames: int = 1,
        temporal: Callable[..., nn.Module] | None = None,
        temporal_layers: int | Sequence[int] = 1,
        block: Callable[..., nn.Module] = ResBlock,
        cond_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if output_limit is not None and output_limit <= 0:
            raise ValueError(f"expected output_limit > 0, got {output_limit}")
        if cond_dim is None and (cond_width is not None or text_layers):
            raise ValueError(
                "cond_width and text_layers need text features, but cond_dim is None; leave them out"
            )
        width = None if cond_dim is None else cond_width or cond_dim
        super().__init__(
            channels=channels,
            blocks=blocks,
            attention=(*(0,) * (len(channels) - 1), 1) if attention is None else attention,
            strides=strides,
            extra_blocks=extra_blocks,
            in_channels=in_channels,
            emb_dim=emb_dim,
            heads=heads,
            norm_groups=norm_groups,
            ffn=ffn,
            masked_cross_attention=masked_cross_attention,
            micro_conditioning=micro_conditioning,
            block=block,
            middle=middle,
            cond_width=width,
            self_conditioning=self_conditioning,
            frames=frames,
            temporal=temporal,
            temporal_layers=temporal_layers,
            device=device,
            dtype=dtype,
        )
        self.output_limit = output_limit
        self.cond_dim, self.cond_width, self.pooled_text = (
            cond_dim,
            width,
            cond_dim is not None and pooled_text,
        )
        self.text = None
        if cond_dim is not None:
            self.text = TextPath(
                cond_dim,
                cond_width=cond_width,
                layers=text_layers,
                heads=heads,
                pooled_dim=self.emb_dim if pooled_text else None,
                masked=masked_cross_attention,
                device=device,
                dtype=dtype,
            )

    def read(
        self,
        cond: Tensor | None,
        mask: Tensor | None = None,
        run: Running | None = None,
        weights: Tensor | None = None,
    ) -> Text | None:
        """What every level is told about the text; cond (B, L, cond_dim), mask (B, L) bool, None: no text.

        weights (B, L): how much each token counts in the pooled text.

        Raises ValueError where text is given but not expected, expected but not given, or of another width.
        """
        if self.text is None:
            if cond is not None:
                raise ValueError("text features are given, but the core is built without them; set cond_dim")
            return None
        if cond is None or cond.shape[-1] != self.cond_dim:
            came = "none" if cond is None else f"width {cond.shape[-1]}"
            raise ValueError(f"expected text features of width {self.cond_dim}, got {came}")
        return self.text(cond, mask, run or Running(), weights)

    def head(self, x: Tensor) -> Tensor:
        prediction, limit = super().head(x), self.output_limit
        return prediction if limit is None else limit * torch.tanh(prediction / limit)

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        *,
        text: Text | None = None,
        micros: Mapping[str, Tensor] | None = None,
        carried: Tensor | None = None,
        previous: Tensor | None = None,
        run: Running | None = None,
    ) -> tuple[Tensor, Tensor]:
        """z (B, in_channels, [F,] H, W), t (B,) in [0, 1] to prediction and features, both of the size of z.

        text is what `read` gives; carried (b <= B, channels[0], [F,] H, W) are features of the shell around,
        of the first rows; previous, like z, is its own last estimate of x0, zero where there is none. Raises
        ValueError where the strides do not divide F (which may be 1), H and W.
        """
        run = run or Running()
        self.check_size(z)
        emb = self.embedding(t, micros)
        if text is not None and text.pooled is not None:
            emb = emb + text.pooled
        few, shown = (None if part is None else as_rows(part) for part in (carried, previous))
        x, skips = self.go_down(as_rows(z), emb, few, text, run, shown)
        if self.middle is not None:
            seen = self.seen(text)
            for j in range(len(self.middle.blocks)):
                x = self.middle.step(j, x, emb, seen, run)
        x = self.go_up(x, emb, skips, text, run)
        return as_clips(self.head(x), z), as_clips(x, z)
