"""One of two workers that evaluate the toy data set; prints the result as exact numbers."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from detectron2.utils import comm

from panoptic_ext.engine import distributed
from panoptic_ext.evaluation import PanopticEvaluator
from tests.tiny import predictions as toy


def main(rank: int, root: str, size: int) -> None:
    """Evaluate the images rank, rank + size, ...; the first one on every worker."""
    if size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{root}/store{size}", rank=rank, world_size=size
        )
        if not getattr(comm, "_LOCAL_PROCESS_GROUP", None):
            comm._LOCAL_PROCESS_GROUP = dist.new_group(list(range(size)))
    name = toy.register(Path(root) / f"data{rank}of{size}", "gloo_toy")
    evaluator = PanopticEvaluator(name, f"{root}/out{size}", write_predictions=True)
    evaluator.reset()
    outputs = toy.imperfect()
    for number, given in enumerate(toy.inputs(name)):
        if number == 0 or number % size == rank:
            evaluator.process([given], [outputs[given["image_id"]]])
    results = evaluator.evaluate()
    assert (results is None) == (rank > 0)
    if rank == 0:
        losses = [(i["image_id"], i["pq"].hex(), i["loss"].hex()) for i in evaluator.per_image]
        print({k: v.hex() for k, v in results["panoptic_seg"].items()}, losses)
    distributed.leave()
