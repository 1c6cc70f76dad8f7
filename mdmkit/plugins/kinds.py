"""The kinds of component: what fills each slot, and what the program, not the recipe, gives it. No torch."""

from __future__ import annotations

import attrs

__all__ = ["KINDS", "Kind"]


@attrs.frozen
class Kind:
    """A slot type. `function`: the target itself, its settings bound, is the object; else it is called."""

    name: str
    doc: str
    protocol: str  # where the object's Protocol or base stands, as "module:attr"
    context: tuple[str, ...] = ()
    function: bool = False
    optional: tuple[str, ...] = ()  # context that is given only to targets that take it


# fmt: off
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("noise_schedule", "how signal and noise mix over t", "mdmkit.schedules:NoiseSchedule"),
        Kind("weighting", "the loss weight over logsnr", "mdmkit.weighting:Weighting"),
        Kind("time_sampler", "the distribution of t in training", "mdmkit.times:TimeSampler",
             ("schedule",)),
        Kind("loss", "the pixel-wise distance of prediction and target", "mdmkit.targets:PixelLoss",
             function=True),
        Kind("block", "a residual block of a U-Net", "mdmkit.nn.blocks:Block",
             ("in_channels", "out_channels", "emb_dim", "norm_groups", "device", "dtype")),
        Kind("attention", "the backend of every attention", "mdmkit.nn.attention:Attend", function=True),
        Kind("core", "the innermost network, level 0", "mdmkit.nn.nest:Core",
             ("cond_dim", "device", "dtype")),
        Kind("shell", "the network of a level around the core", "mdmkit.nn.nest:Shell",
             ("inner_channels", "emb_dim", "cond_width", "device", "dtype")),
        Kind("temporal_layer", "a layer along the frames of a clip", "mdmkit.nn.temporal:TemporalLayer",
             ("channels", "emb_dim", "device", "dtype")),
        Kind("text_encoder", "captions to features", "mdmkit.text:TextEncoder", ("device", "dtype")),
        Kind("resolution_sampler", "which levels the rows of a batch train",
             "mdmkit.resolutions:ResolutionSampler", ("levels",)),
        Kind("growth", "which levels exist at a step", "mdmkit.growth:Growth", ("levels",)),
        Kind("sampler", "an update rule: a whole trajectory from noise to data", "mdmkit.sampling.rules:Rule",
             function=True),
        Kind("spacing", "which times a sampler visits", "mdmkit.sampling.spacing:Spacing", function=True),
        Kind("guidance", "wraps a denoiser into a denoiser", "mdmkit.sampling.guidance:Guidance"),
        Kind("threshold", "keeps predicted pictures in range", "mdmkit.sampling.threshold:Threshold",
             function=True),
        Kind("dataset", "samples by global position", "mdmkit.data:Dataset", ("seed", "resolution"),
             optional=("frames",)),
        Kind("metric", "numbers of drawn pictures, or of the network on the data", "mdmkit.evaluate:Metric",
             ("device",)),
        Kind("logger", "takes numbers and pictures of a run", "mdmkit.train.logs:Logger", ("run_dir",)),
        Kind("optimizer", "updates parameters from gradients", "torch.optim:Optimizer", ("params",)),
        Kind("lr_schedule", "the factor on the learning rate over steps", "mdmkit.train.lr:LRSchedule"),
    )
}
