"""Several classifiers under one network, each with its own class activation map.

Source: Ostrowski et al., "Exploring weakly supervised semantic segmentation ensembles for medical imaging systems",
arXiv:2303.07896.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common.cam
import common.losses
from common.encoders import Classifier
from common.encoders.maps import MapHead, stage_features

METHODS = ("CAM", "GradCAM", "GradCAMpp", "HiResCAM", "LayerCAM", "ScoreCAM", "SmoothGradCAMpp", "XGradCAM")
TARGETS = ("argmax", "predicted")


class EnsembleNet(nn.Module):
    """Classifiers that see the same image; the ensemble's probability is the mean of theirs.

    Args:
        members: names of backbones, or mappings of `common.encoders.Classifier`'s options.
        in_channels: image channels, without the organ channel.
        num_classes: classes, 0 = healthy.
        organ_channel: the last input channel is an organ mask, which the members do not see.
        zoom: the image is enlarged by it, which makes the maps finer in the image's pixels.
        frame_threshold: the members see pixels of at least this value, all others as 0 (the paper: 0.8 of the
            normalized frame); None: all as they are.
        cam: name of a class in `common.cam`.
        cam_stage: of `Classifier.stages`, whose activations the map is made of; -1 is the last.
        cam_channel: for the maps only, all channels are replaced by this one (the paper trains on T1ce, T2 and FLAIR
            and explains FLAIR alone).
        target: class whose logit is explained; `argmax`, each member's most probable one; or `predicted`: of the
            classes but 0, each slice's most probable one by all members, whose label a mask there gets.
        map_width: channels of the `MapHead` that each member has beside its class; its maps, which a second training
            on pseudo-masks teaches, take the place of the activation maps. 0: there are none.
        start: ensemble of the same members, whose weights these begin with.
        pretrained: weights by backbone, see `Classifier`; none when a checkpoint follows.
    """

    def __init__(
        self,
        members: Sequence[str | Mapping[str, Any]] = ("resnet34", "resnet50"),
        *,
        in_channels: int = 1,
        num_classes: int = 2,
        organ_channel: bool = True,
        zoom: float = 1.0,
        frame_threshold: float | None = None,
        cam: str = "GradCAM",
        cam_stage: int = -1,
        cam_channel: int | None = None,
        target: int | Literal["argmax", "predicted"] = 1,
        map_width: int = 0,
        start: EnsembleNet | None = None,
        pretrained: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one member")
        if cam not in METHODS or (isinstance(target, str) and target not in TARGETS):
            raise ValueError(
                f"cam must be one of {METHODS} and target a class or one of {TARGETS}, got {cam!r} and {target!r}"
            )
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.num_maps = len(members)
        self.organ_channel = organ_channel
        self.zoom = zoom
        self.frame_threshold = -math.inf if frame_threshold is None else frame_threshold
        self.cam = cam
        self.cam_stage = cam_stage
        self.cam_channel = cam_channel
        self.target: int | str | Tensor = target
        specs = [{"backbone": member} if isinstance(member, str) else dict(member) for member in members]
        for spec in specs:
            spec.setdefault("pretrained", (pretrained or {}).get(spec["backbone"]))
        self.members = nn.ModuleList(
            Classifier(in_channels=in_channels, num_classes=num_classes, **spec) for spec in specs
        )
        if start is not None:
            self.members.load_state_dict(start.members.state_dict())
        self.map_heads = nn.ModuleList(MapHead(member, map_width) for member in self.members if map_width > 0)
        self.explained_layer = f"members.0.{self.members[0].stages[cam_stage]}"  # for Grad-CAM beside the own map

    def image(self, image: Tensor) -> Tensor:
        """What the members see of `[B, in_channels (+1 with organ_channel), H, W]`."""
        if self.organ_channel:
            image = image[:, :-1]
        if self.frame_threshold > -math.inf:
            image = image.masked_fill(image < self.frame_threshold, 0.0)
        if self.zoom != 1.0:
            image = F.interpolate(image, scale_factor=self.zoom, mode="bilinear", align_corners=False)
        return image

    def member_logits(self, image: Tensor) -> Tensor:
        """Logits of each member, `[B, members, num_classes]`."""
        seen = self.image(image)
        return torch.stack([member(seen) for member in self.members], dim=1)

    def member_maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of the members' heads, `[B, members, H, W]` logits, and `member_logits`, in one pass."""
        seen = self.image(image)
        maps, logits = [], []
        for member, head in zip(self.members, self.map_heads, strict=True):
            logit, stages = stage_features(member, seen)
            maps.append(F.interpolate(head(stages), size=image.shape[-2:], mode="bilinear", align_corners=False))
            logits.append(logit)
        return torch.cat(maps, dim=1), torch.stack(logits, dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """Logarithm of the mean probability, `[B, num_classes]`: logits whose softmax is the ensemble's probability."""
        return _mean_probability(self.member_logits(image))

    def explain(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map of each member, its class activation map or what its `MapHead` gives, and the ensemble's logits.

        Args:
            image: `[B, in_channels (+1 with organ_channel), H, W]`.

        Returns:
            Raw maps `[B, members, H, W]`, not negative and not normalized (those of heads: probabilities), and logits
            `[B, num_classes]`.
        """
        if len(self.map_heads) > 0:
            learned, of_members = self.member_maps(image)
            return learned.sigmoid(), _mean_probability(of_members)
        seen = self.image(image)
        method = getattr(common.cam, self.cam)
        maps, logits, target = [], [], self._explained([image])
        for member in self.members:
            explained = seen
            if self.cam_channel is not None:
                explained = seen[:, self.cam_channel : self.cam_channel + 1].expand_as(seen)
            with method(member, member.stages[self.cam_stage]) as cam:
                heat = cam(explained, target=target).relu()
                logits.append(cam.logits if self.cam_channel is None else member(seen))
            maps.append(F.interpolate(heat[:, None], size=image.shape[-2:], mode="bilinear", align_corners=False))
        return torch.cat(maps, dim=1), _mean_probability(torch.stack(logits, dim=1))

    def explaining(self, target: int | str | Tensor) -> EnsembleNet:
        """This network, sharing its weights, with activation maps of the class that is told, whatever it predicts.

        Maps of heads are those of any finding; where members have them, it is the network itself.

        Args:
            target: a class, or one for each image, `[B]`.
        """
        if len(self.map_heads) > 0:
            return self
        other = copy.copy(self)
        other.target = target
        return other

    def decided(self, views: Sequence[Tensor]) -> EnsembleNet:
        """This network, with maps of the same class for all views of a slice, so that they can be averaged.

        Where a slice's most probable finding is explained, that is the one by the mean of the views' logits.

        Args:
            views: images `[B, in_channels (+1 with organ_channel), H, W]` of the same slices.
        """
        return self if len(self.map_heads) > 0 else self.explaining(self._explained(views))

    def _explained(self, views: Sequence[Tensor]) -> int | str | Tensor:
        """The target of all views of a slice, and of all members, which decide together what is predicted."""
        if not isinstance(self.target, str) or self.target != "predicted":
            return self.target
        with torch.no_grad():
            logits = torch.stack([self(view) for view in views]).mean(dim=0)
        return 1 + logits[:, 1:].argmax(dim=1)


def _mean_probability(logits: Tensor) -> Tensor:
    """`[B, members, classes]` → `[B, classes]`, log of the members' mean softmax."""
    return torch.logsumexp(logits.log_softmax(2), dim=1) - torch.log(torch.tensor(float(logits.shape[1])))


class MemberLogits(nn.Module):
    """For training: the ensemble with the logits of each member as output, so that each learns from its own error.

    Where members have map heads, their maps come first, see `EnsembleNet.member_maps`.
    """

    def __init__(self, module: EnsembleNet) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.module.member_maps(image) if len(self.module.map_heads) > 0 else self.module.member_logits(image)


class MemberLoss(nn.Module):
    """Sum over the members of the cross-entropy; they share no parameter, so each trains as if alone.

    Args:
        label_smoothing, weight: as in `torch.nn.CrossEntropyLoss`.
    """

    def __init__(self, *, label_smoothing: float = 0.0, weight: Sequence[float] | None = None) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss(
            weight=None if weight is None else torch.tensor(weight), label_smoothing=label_smoothing
        )

    def forward(self, logits: Tensor, cls: Tensor) -> Tensor:
        """Scalar from `[B, members, classes]` and `[B]`."""
        members = logits.shape[1]
        return members * self.loss(logits.transpose(1, 2), cls[:, None].expand(-1, members))


class MaskLoss(common.losses.MaskLoss):
    """Sum over the members: their maps against the mask, and their logits against the label.

    Args:
        options: of `common.losses.MaskLoss`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(MemberLoss(), **options)
