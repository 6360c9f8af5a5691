from __future__ import annotations

import torch
from ignite.engine import Engine
from torch.nn import functional as F

from common.handlers import MedianLoss


def test_it_is_minus_the_median_of_the_batches_weighted_losses():
    torch.manual_seed(0)
    weight = torch.tensor([0.5, 2.0, 1.0])
    batches = [(torch.randn(4, 3), torch.randint(3, (4,))) for _ in range(5)]
    engine = Engine(
        lambda _, batch: [
            {"pred": p, "label": y} for p, y in zip(batch[0].softmax(1), F.one_hot(batch[1], 3), strict=True)
        ]
    )
    MedianLoss(weight).attach(engine, "median_loss")
    engine.run(batches)
    losses = torch.stack([F.cross_entropy(logits, labels, weight=weight) for logits, labels in batches])
    torch.testing.assert_close(torch.tensor(engine.state.metrics["median_loss"]), -losses.median())
